"""Files on instances that come, go and fail: each ends once, and nothing waits without need."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aegis.mapper.files.schedule import Rules, Schedule

INSTANCES = ("a", "b", "c")


def begun(schedule: Schedule[str], now: float = 0.0) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, key in schedule.take(now):
        found.setdefault(key, []).append(position)
    return found


def all_of(*keys: str) -> dict[str, bool]:
    return dict.fromkeys(keys, True)


def test_the_biggest_are_spread_first() -> None:
    schedule: Schedule[str] = Schedule(5, Rules(slots=2))
    schedule.update(all_of("a", "b"))
    assert begun(schedule) == {"a": [0, 2], "b": [1, 3]}
    assert begun(schedule) == {}
    schedule.done(3)
    assert begun(schedule) == {"b": [4]}


def test_a_file_that_failed_goes_elsewhere_after_a_while() -> None:
    schedule: Schedule[str] = Schedule(3, Rules(back_off=1.0))
    schedule.update(all_of("a", "b"))
    begun(schedule)
    assert not schedule.failed(0, 0.0)
    assert begun(schedule) == {"a": [2]}
    schedule.done(2)
    assert begun(schedule, 5.0) == {}  # `b` works, and is the better place
    schedule.done(1)
    assert begun(schedule, 5.0) == {"b": [0]}


def test_alone_an_instance_is_tried_again_and_then_it_is_final() -> None:
    schedule: Schedule[str] = Schedule(1, Rules(tries=3, back_off=1.0))
    schedule.update(all_of("a"))
    for now, last in ((0.0, False), (1.0, False), (3.0, True)):
        assert begun(schedule, now) == {"a": [0]}
        assert begun(schedule, now + 0.5) == {}
        assert schedule.failed(0, now) is last
    assert schedule.left == 0


def test_who_fails_different_files_in_a_row_rests_and_then_gets_one() -> None:
    schedule: Schedule[str] = Schedule(100, Rules(slots=4, streak=3, pause=30.0))
    schedule.update(all_of("a"))
    for position in begun(schedule)["a"][:3]:
        schedule.failed(position, 0.0)
    assert schedule.instances(29.0) == (1, 1)
    assert begun(schedule, 29.0) == {}
    schedule.done(3)  # what still runs may show that it works
    assert len(begun(schedule, 31.0)["a"]) == 4

    schedule.update(all_of("a", "b"))
    assert len(begun(schedule, 31.0)["b"]) == 4
    for position in list(schedule.lanes["a"].running):
        schedule.failed(position, 40.0)
    assert schedule.wakes_at(40.0) <= 70.0
    assert begun(schedule, 69.0) == {}  # another works
    (position,) = begun(schedule, 71.0)["a"]
    schedule.failed(position, 71.0)
    assert begun(schedule, 130.0) == {}  # longer, each time
    (position,) = begun(schedule, 132.0)["a"]
    schedule.done(position)
    assert len(begun(schedule, 132.0)["a"]) == 4


def test_nobody_rests_where_files_fail_on_all() -> None:
    schedule: Schedule[str] = Schedule(100, Rules(streak=3, tries=1, pause=30.0))
    schedule.update(all_of("a", "b"))
    for _ in range(20):
        starts = begun(schedule)
        assert starts
        for position in [each for positions in starts.values() for each in positions]:
            schedule.failed(position, 0.0)
    assert schedule.failing


def test_who_does_not_answer_rests_also_alone() -> None:
    schedule: Schedule[str] = Schedule(9, Rules(streak=3, pause=30.0, back_off=0.0))
    schedule.update(all_of("a"))
    schedule.lost(begun(schedule)["a"][0], 0.0, by="a")
    assert begun(schedule, 29.0) == {}
    assert begun(schedule, 30.0) == {"a": [0]}


def test_it_is_not_the_program_while_half_of_the_instances_work() -> None:
    schedule: Schedule[str] = Schedule(9, Rules())
    schedule.update(all_of("a", "b"))
    starts = begun(schedule)
    schedule.failed(starts["a"][0], 0.0)
    assert not schedule.failing
    schedule.failed(starts["b"][0], 0.0)
    assert schedule.failing


def test_who_comes_back_healthy_starts_anew() -> None:
    schedule: Schedule[str] = Schedule(9, Rules(streak=1))
    schedule.update(all_of("a", "b"))
    schedule.failed(begun(schedule)["a"][0], 0.0)
    assert begun(schedule, 0.0) == {}
    assert [lane.key for lane in schedule.update(all_of("b"))] == ["a"]
    schedule.update(all_of("a", "b"))
    assert begun(schedule, 0.1) == {"a": [2]}


def test_losses_are_not_the_files_fault_unless_there_are_many() -> None:
    schedule: Schedule[str] = Schedule(1, Rules(tries=1, losses=3, back_off=0.0))
    schedule.update(all_of("a"))
    ends = []
    for _ in range(3):
        begun(schedule)
        ends.append(schedule.lost(0, 0.0))
    assert ends == [False, False, True]


def test_an_instance_that_is_gone_gets_nothing_and_is_forgotten_when_it_is_empty() -> None:
    schedule: Schedule[str] = Schedule(3, Rules())
    schedule.update(all_of("a", "b"))
    begun(schedule)
    schedule.update({"a": False, "b": True})
    schedule.lost(0, 0.0)
    assert begun(schedule, 0.0) == {}
    schedule.done(1)
    assert begun(schedule, 9.0) == {"b": [0]}
    schedule.update(all_of("b"))
    assert list(schedule.lanes) == ["b"]


class Fleet(RuleBasedStateMachine):
    """Anything happens in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.how = Rules(slots=2, tries=3, losses=4, streak=2, back_off=1.0, pause=5.0)
        self.schedule: Schedule[str] = Schedule(12, self.how)
        self.now = 0.0
        self.running: dict[int, str] = {}
        self.ended: list[int] = []
        self.tries: dict[int, int] = {}
        self.there: dict[str, bool] = {}

    @rule(there=st.dictionaries(st.sampled_from(INSTANCES), st.booleans()))
    def change(self, there: dict[str, bool]) -> None:
        self.there = there
        self.schedule.update(there)

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        for position, key in self.schedule.take(self.now):
            assert position not in self.running
            assert position not in self.ended
            assert self.there[key]
            self.running[position] = key

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["done", "failed", "lost", "silent"]))
    def end(self, data: st.DataObject, how: str) -> None:
        position = data.draw(st.sampled_from(sorted(self.running)))
        key = self.running.pop(position)
        if how == "done":
            self.schedule.done(position)
            final = True
        elif how == "failed":
            final = self.schedule.failed(position, self.now)
            self.tries[position] = self.tries.get(position, 0) + 1
            assert final == (self.tries[position] == self.how.tries)
        else:
            final = self.schedule.lost(position, self.now, by=key if how == "silent" else None)
        if final:
            self.ended.append(position)

    @invariant()
    def counts(self) -> None:
        assert self.schedule.running == len(self.running)
        assert self.schedule.finished == len(self.ended) == len(set(self.ended))
        for key in INSTANCES:
            assert sum(each == key for each in self.running.values()) <= self.how.slots

    def teardown(self) -> None:
        """From wherever it is, healthy instances bring it to its end."""
        for position in self.running:
            self.schedule.done(position)
        self.ended += self.running
        self.schedule.update(all_of("a", "b"))
        for _ in range(100):
            if not self.schedule.left:
                break
            starts = self.schedule.take(self.now)
            if not starts:
                wakes = self.schedule.wakes_at(self.now)
                assert wakes > self.now
                self.now = wakes
            for position, _ in starts:
                self.schedule.done(position)
                self.ended.append(position)
        assert sorted(self.ended) == list(range(12))


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
