"""Requests that come back as soon as they are answered, counted in steps: by hand, and against the simulation step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.planner.estimate import closed_loop
from aegis.planner.estimate.batching import Engine, simulate
from aegis.planner.estimate.closed_loop import REQUESTS, Times, Turns, further, ttft, turns
from aegis.planner.problem import Load

ONE = np.array([1.0])


def of(users: int, chunk: int, *, isl: int = 100, steps: int = 500) -> Turns:
    return turns(np.array([users]), np.array([chunk]), isl=isl, steps=steps)


def times(*, mixed: float, decode: float) -> Times:
    return Times(start=mixed * ONE, waited=mixed * ONE, mixed=mixed * ONE, decode=decode * ONE)


class Priced:
    """Steps that take so many ms, whatever is in them."""

    def __init__(self, mixed: float, decode: float) -> None:
        self._mixed, self._decode = mixed, decode

    def mixed(self, chunk: int, requests: int) -> float:
        del chunk, requests
        return self._mixed

    def decode(self, requests: int, length: float) -> float:
        del requests, length
        return self._decode


def test_a_single_user_waits_for_nobody_and_is_read_in_chunks() -> None:
    alone = of(1, 40)
    assert alone.start == alone.waiting == 3
    assert alone.mixing == alone.meeting == alone.idling == alone.running == 0
    assert alone.tokens == alone.tokens_waited == pytest.approx(100 / 3)
    assert ttft(alone, times(mixed=10, decode=1)) == 30
    assert further(alone, times(mixed=10, decode=1)) == 1


def test_users_who_start_at_once_wait_for_each_other() -> None:
    assert of(9, 100).start == pytest.approx((9 + 1) / 2)
    assert of(4, 200).start == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert of(4, 60).start == pytest.approx((2 + 4 + 5 + 7) / 4)


def test_a_request_arrives_within_a_step_that_reads_another_or_does_not() -> None:
    found = of(8, 100)
    assert found.meeting + found.idling == pytest.approx(1)
    assert 0 < found.meeting < 0.1
    assert found.waiting < 1.1


def test_where_prompts_come_faster_than_answers_end_each_step_reads_one() -> None:
    found = of(400, 100, steps=100)
    assert found.mixing == found.meeting == pytest.approx(1)
    assert found.tokens == found.tokens_waited == pytest.approx(100)
    # Little's law: a prompt a step, so of 400 users 100 have answers under way
    assert found.running == pytest.approx(100, rel=0.02)
    assert found.waiting == pytest.approx(400 - 100 - 1, rel=0.02)


def test_all_tokens_of_a_step_are_of_prompts_that_wait() -> None:
    sparse, dense = of(16, 800), of(400, 800)
    assert 100 < sparse.tokens < dense.tokens < 800
    assert sparse.tokens_waited > sparse.tokens  # more of them wait for a fuller step


@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(1, 70), st.integers(50, 1200)), min_size=2, max_size=8, unique=True),
    steps=st.integers(1, 200),
)
def test_it_does_not_matter_what_else_is_asked(asked: list[tuple[int, int]], steps: int) -> None:
    batch, chunk = np.array(asked).T
    closed_loop._known.cache_clear()
    together = turns(batch, chunk, isl=200, steps=steps)
    for number, key in enumerate(asked):
        closed_loop._known.cache_clear()
        alone = turns(*(np.array([each]) for each in key), isl=200, steps=steps)
        assert [column[0] for column in alone] == [column[number] for column in together]


def test_nothing_asked_is_nothing_answered() -> None:
    none = turns(np.array([], dtype=int), np.array([], dtype=int), isl=200, steps=77)
    assert [len(column) for column in none] == [0] * len(Turns._fields)


def test_more_users_than_can_be_followed_are_refused() -> None:
    with pytest.raises(ConfigError, match="100,000,000 requests under way in one group, of at most 131,072"):
        of(10**8, 100)


def test_those_who_come_together_do_not_meet_each_other() -> None:
    found = of(2, 400, steps=3)
    assert found.running >= 0
    pairs = of(32, 2000, steps=200)  # many come at once, and all of them are read in one step
    assert pairs.meeting < 0.35


def test_prompts_may_be_as_long_as_any() -> None:
    found = of(4, 2**24, isl=2**23)
    assert 2**23 <= found.tokens <= found.tokens_waited <= 2**24


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(4, 60),
    isl=st.integers(50, 2000),
    chunk=st.integers(100, 4000),
    steps=st.integers(50, 400),
)
def test_it_sees_what_the_simulation_sees(users: int, isl: int, chunk: int, steps: int) -> None:
    found = of(users, chunk, isl=isl, steps=steps)
    # a pause of almost nothing: the next request comes within the step that follows
    engine = Engine(users, chunk, turnaround=1e-6, spread=0.1, requests=REQUESTS)
    seen = simulate(engine, Priced(1.0, 1.0), Load(isl=isl, osl=steps + 1))
    assert float(ttft(found, times(mixed=1, decode=1))[0]) == pytest.approx(seen.ttft, rel=0.15)
    uneven = simulate(engine, Priced(3.0, 1.0), Load(isl=isl, osl=steps + 1))
    assert float(ttft(found, times(mixed=3, decode=1))[0]) == pytest.approx(uneven.ttft, rel=0.15)
    assert float(further(found, times(mixed=3, decode=1))[0]) == pytest.approx(uneven.tpot, rel=0.08)
    assert 0 <= found.mixing <= 1
    assert 0 < found.tokens <= chunk
    assert 0 < found.tokens_waited <= chunk
    assert 0 <= found.running <= users
