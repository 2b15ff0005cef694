"""Choices against a model that looks at every instance, and what they cost."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aegis.api.targets import Target
from aegis.gateway.balance import Backend, Balance, Outcome, Policy

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWERED, REFUSED, FAILED = Outcome.ANSWERED, Outcome.REFUSED, Outcome.FAILED


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def target(number: int, *models: str, host: str = "h") -> Target:
    return Target(host, 8000 + number, models or ("m",), "n", f"i{number}")


def balance_of(number: int, clock: Clock | None = None, **policy: Any) -> Balance:
    balance = Balance(Policy(**policy), clock or Clock(), rng=random.Random(1))
    balance.update(target(each) for each in range(number))
    return balance


def chosen(balance: Balance, *prefixes: int, **how: Any) -> Backend:
    backend = balance.choose("m", prefixes, **how)
    assert backend is not None
    return backend


def state(backend: Backend) -> str:
    return backend.state


def opened(balance: Balance, backend: Backend) -> None:
    balance.begin(backend)
    balance.end(backend, REFUSED)


def test_the_least_busy_one_is_chosen_and_ties_are_spread() -> None:
    balance = balance_of(4)
    first = []
    for _ in range(8):
        first.append(chosen(balance))
        balance.begin(first[-1])
    assert set(Counter(first).values()) == {2}
    one_after_the_other: Counter[str] = Counter()
    for _ in range(8):
        backend = chosen(balance)
        balance.begin(backend)
        balance.end(backend, ANSWERED)
        one_after_the_other[backend.name] += 1
    assert set(one_after_the_other.values()) == {2}


def test_several_gateways_do_not_begin_with_the_same_instance() -> None:
    firsts = set()
    for seed in range(20):
        balance = Balance(Policy(), Clock(), rng=random.Random(seed))
        balance.update(target(each) for each in range(10))
        firsts.add(chosen(balance).name)
    assert len(firsts) > 3


def test_a_conversation_stays_while_its_instance_is_not_much_busier() -> None:
    balance = balance_of(3, slack=2)
    home = chosen(balance, 1, 2)
    for _ in range(3):
        assert chosen(balance, 1, 2, 3) is home
        balance.begin(home)
    away = chosen(balance, 1, 2, 3)
    assert away is not home
    assert chosen(balance, 1) is away  # and it is remembered where it went


def test_the_longest_known_beginning_wins() -> None:
    balance = balance_of(3)
    first = chosen(balance, 1, 2)
    second = chosen(balance, 1, 9, but=[first])
    assert chosen(balance, 1, 2, 3) is first
    assert chosen(balance, 1, 9, 8) is second
    assert chosen(balance, 1) is second  # the last to have had it


def test_what_an_instance_cannot_take_goes_elsewhere() -> None:
    balance = balance_of(2, outstanding=2)
    home = chosen(balance, 7)
    other = chosen(balance, 7, but=[home])
    assert other is not home
    assert balance.choose("m", [7], but=[home, other]) is None
    for _ in range(4):
        balance.begin(chosen(balance, 7))
    assert home.outstanding == other.outstanding == 2
    assert balance.choose("m", [7]) is None
    balance.end(home, ANSWERED)
    assert chosen(balance, 7) is home


def test_models() -> None:
    balance = Balance(Policy(), Clock())
    balance.update([target(1, "b", "a"), target(2, "b")])
    assert balance.names == ("a", "b")
    assert balance.serves("a")
    assert not balance.serves("c")
    assert balance.choose("c", ()) is None
    (alone,) = {balance.choose("a", [1]) for _ in range(3)}
    assert alone is not None
    assert alone.target.instance == "i1"
    balance.begin(alone)
    backend = balance.choose("b", ())
    assert backend is not None
    assert backend.target.instance == "i2"


def test_a_conversation_is_not_sent_to_an_instance_without_its_model() -> None:
    balance = Balance(Policy(), Clock())
    balance.update([target(1, "a"), target(2, "b")])
    for model, instance in [("a", "i1"), ("b", "i2")] * 2:
        backend = balance.choose(model, [1])
        assert backend is not None
        assert backend.target.instance == instance


def test_the_least_busy_one_may_leave() -> None:
    balance = balance_of(3)
    idle, *others = balance.backends
    for backend in others:
        balance.begin(backend)
        balance.begin(backend)
    assert chosen(balance) is idle
    opened(balance, idle)
    assert chosen(balance) in others
    balance.update(backend.target for backend in others[1:])
    assert chosen(balance) is others[1]


def test_an_instance_may_get_other_models() -> None:
    balance = balance_of(1)
    backend = chosen(balance, 5)
    balance.begin(backend)
    balance.update([target(0, "k")])
    assert balance.names == ("k",)
    assert balance.choose("m", [5]) is None
    assert balance.choose("k", [5]) is backend
    assert backend.outstanding == 1
    balance.update([target(0, "m", "k"), target(1)])
    balance.update([target(0, "k"), target(1)])
    assert {chosen(balance).name for _ in range(4)} == {"i1"}


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    balance = balance_of(1, failures=3)
    backend = chosen(balance)
    for outcome in (FAILED, FAILED, ANSWERED, FAILED, Outcome.CANCELLED, Outcome.BROKE):
        balance.begin(backend)
        balance.end(backend, outcome)
        assert backend.state == "closed"
    balance.begin(backend)
    balance.end(backend, FAILED)
    assert backend.state == "open"
    assert balance.choose("m", ()) is None
    assert balance.serves("m")


def test_an_open_breaker_is_probed_with_growing_pauses_until_a_probe_is_answered() -> None:
    clock = Clock()
    balance = balance_of(1, clock, pause_seconds=1, longest_pause_seconds=8, jitter=0)
    (backend,) = balance.backends
    opened(balance, backend)
    pauses = []
    for _ in range(6):
        began = clock.now
        while not balance.suspects():
            clock.now += 0.5
        pauses.append(clock.now - began)
        assert state(backend) == "half-open"
        assert balance.suspects() == []  # one probe at a time
        assert balance.choose("m", ()) is None
        balance.probed(backend, answered=False)
        assert state(backend) == "open"
    assert pauses == [1, 2, 4, 8, 8, 8]
    clock.now += 8
    assert balance.suspects() == [backend]
    balance.probed(backend, answered=True)
    assert backend.state == "closed"
    assert chosen(balance) is backend


def test_pauses_are_short_again_after_a_request_was_answered_not_after_a_probe() -> None:
    clock = Clock()
    balance = balance_of(1, clock, pause_seconds=1, jitter=0)
    (backend,) = balance.backends

    def pause_after_opening() -> float:
        opened(balance, backend)
        pause = backend.retry - clock.now
        clock.now = backend.retry
        assert balance.suspects() == [backend]
        balance.probed(backend, answered=True)
        return pause

    assert [pause_after_opening() for _ in range(3)] == [1, 2, 4]
    balance.begin(backend)
    balance.end(backend, ANSWERED)
    assert pause_after_opening() == 1


def test_pauses_differ_between_gateways() -> None:
    retries = set()
    for seed in range(5):
        balance = Balance(Policy(jitter=0.2), Clock(), rng=random.Random(seed))
        balance.update([target(1)])
        opened(balance, balance.backends[0])
        retries.add(balance.backends[0].retry)
    assert len(retries) == 5
    assert all(101 <= retry <= 101.2 for retry in retries)


def test_an_instance_with_work_and_no_byte_is_a_suspect() -> None:
    clock = Clock()
    balance = balance_of(2, clock, stall_seconds=10)
    backend = chosen(balance)
    clock.now += 100
    assert balance.suspects() == []  # it has nothing to say
    balance.begin(backend)
    clock.now += 9
    balance.begin(backend)
    balance.heard(backend)
    clock.now += 9
    assert balance.suspects() == []
    clock.now += 1
    assert balance.suspects() == [backend]
    assert state(backend) == "closed"  # suspected only
    balance.probed(backend, answered=True)
    clock.now += 9
    assert balance.suspects() == []
    clock.now += 1
    assert balance.suspects() == [backend]
    balance.probed(backend, answered=False)
    assert backend.state == "open"
    assert chosen(balance) is not backend


def test_who_is_gone_finishes_what_it_has_and_comes_back_fresh() -> None:
    clock = Clock()
    balance = balance_of(2, clock, stall_seconds=10)
    backend = chosen(balance, 1)
    rest = [target(each) for each in range(2) if target(each) != backend.target]
    balance.begin(backend)
    balance.begin(backend)
    balance.end(backend, FAILED)
    balance.update(rest)
    assert backend in balance.backends
    assert chosen(balance, 1) is not backend
    clock.now += 10
    assert balance.suspects() == [backend]  # its node may be gone too
    balance.probed(backend, answered=False)
    clock.now += 1000
    assert balance.suspects() == [backend]  # somebody still waits for it
    balance.probed(backend, answered=False)
    balance.update([*rest, backend.target])
    assert (backend.state, backend.outstanding) == ("closed", 1)  # what it has still weighs
    assert (backend.failures, backend.heard) == (0, clock.now)
    balance.update(rest)
    balance.end(backend, ANSWERED)
    assert backend not in balance.backends
    balance.update([*rest, backend.target])
    assert backend not in balance.backends
    assert len(balance.backends) == 2


def test_the_memory_of_conversations_is_bounded() -> None:
    balance = balance_of(4, prefixes=50)
    for number in range(1000):
        balance.choose("m", range(number * 20, number * 20 + 20))
    assert len(balance._known) == 50
    assert max(balance._known) == 1000 * 20 - 1  # the newest are kept


def steps(function: Callable[[], object]) -> int:
    """Count the lines of Python that a call runs."""
    count = 0

    def trace(_frame: object, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("prefixes", [(), (1, 2, 3)])
def test_a_request_costs_the_same_among_a_thousand_instances(prefixes: tuple[int, ...]) -> None:
    def worst(number: int) -> int:
        rng = random.Random(number)
        balance = balance_of(number)
        running: list[Backend] = []

        def request() -> None:
            backend = chosen(balance, *(prefix + rng.randrange(50) for prefix in prefixes))
            balance.begin(backend)
            running.append(backend)

        def end() -> None:
            balance.end(running.pop(rng.randrange(len(running))), ANSWERED)

        for _ in range(2 * number):
            request()
        most = 0
        for _ in range(200):
            most = max(most, steps(request) + steps(end))
        return most

    few = worst(10)
    assert few > 10
    assert worst(1000) <= 2 * few  # and not a hundred times


class Machine(RuleBasedStateMachine):
    """Any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.policy = Policy(outstanding=4, slack=1, prefixes=6, failures=2, stall_seconds=5)
        self.balance = Balance(self.policy, self.clock, rng=random.Random(0))
        self.running: list[Backend] = []
        self.probes: list[Backend] = []

    def candidates(self, model: str, but: list[Backend]) -> list[Backend]:
        return [
            each
            for each in self.balance.backends
            if not each.gone
            and each.state == "closed"
            and model in each.target.models
            and each.outstanding < self.policy.outstanding
            and each not in but
        ]

    @rule(there=st.dictionaries(st.integers(0, 4), st.sampled_from(["m", "k", "mk"])))
    def update(self, there: dict[int, str]) -> None:
        wanted = [target(number, *models) for number, models in there.items()]
        self.balance.update(wanted)
        here = [each for each in self.balance.backends if not each.gone]
        assert sorted(each.target.instance for each in here) == sorted(each.instance for each in wanted)
        assert self.balance.names == tuple(sorted({model for each in wanted for model in each.models}))

    @rule(
        model=st.sampled_from("mk"),
        prefixes=st.lists(st.integers(0, 9), max_size=3),
        excluded=st.integers(0, 3),
    )
    def ask(self, model: str, prefixes: list[int], excluded: int) -> None:
        but = list(self.balance.backends[:excluded])
        candidates = self.candidates(model, but)
        known = [self.balance._known.get(prefix) for prefix in reversed(prefixes)]
        backend = self.balance.choose(model, prefixes, but=but)
        if backend is None:
            assert not candidates
            return
        least = min(each.outstanding for each in candidates)
        assert backend in candidates
        assert backend.outstanding <= least + (self.policy.slack if backend in known else 0)
        assert [self.balance._known.get(prefix, backend) for prefix in prefixes] == [backend] * len(prefixes)
        self.balance.begin(backend)
        self.running.append(backend)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), outcome=st.sampled_from(Outcome))
    def end(self, which: int, outcome: Outcome) -> None:
        self.balance.end(self.running.pop(which % len(self.running)), outcome)

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0]), which=st.integers(0, 9))
    def time_passes(self, seconds: float, which: int) -> None:
        self.clock.now += seconds
        if self.running:
            self.balance.heard(self.running[which % len(self.running)])

    @rule()
    def look(self) -> None:
        found = self.balance.suspects()
        assert not set(found) & set(self.probes)
        self.probes += found

    @precondition(lambda self: self.probes)
    @rule(answered=st.booleans())
    def probed(self, answered: bool) -> None:
        backend = self.probes.pop(0)
        self.balance.probed(backend, answered=answered)
        assert backend.state == ("closed" if answered else "open")

    @invariant()
    def counts_are_right(self) -> None:
        counts = Counter(self.running)
        assert set(counts) <= set(self.balance.backends)
        for backend in self.balance.backends:
            assert backend.outstanding == counts[backend]
            assert not backend.gone or backend.outstanding

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.balance._known) <= self.policy.prefixes


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
