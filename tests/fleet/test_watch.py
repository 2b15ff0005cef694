"""The shared watcher: one question for all who ask, old answers that never change, and locks that hold nobody up."""

from __future__ import annotations

import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from aegis.fleet.watch import Answer, Gaps, Memory, Policy, Watcher
from aegis.schedulers.base import JobStatus, SchedulerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

A, B, C = "slurm://1", "slurm://2", "slurm://3"
RUNS = JobStatus(state="LAUNCHING")
POLICY = Policy()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Scheduler:
    """Knows some jobs, and counts who asks."""

    def __init__(self, *handles: str) -> None:
        self.jobs = dict.fromkeys(handles, RUNS)
        self.asked: list[list[str]] = []
        self.down = False
        self.slow = 0.0

    def query(self, handles: list[str]) -> dict[str, JobStatus]:
        self.asked.append(handles)
        time.sleep(self.slow)
        if self.down:
            raise SchedulerUnavailable("slurmctld does not answer")
        return {handle: self.jobs[handle] for handle in handles if handle in self.jobs}


class Place:
    """A state folder, and watchers that share it as processes would."""

    def __init__(self, folder: Path, policy: Policy = POLICY) -> None:
        self.folder = folder
        self.policy = policy
        self.clock = Clock()
        self.scheduler = Scheduler(A, B)
        self.live: list[str] = []

    @property
    def file(self) -> Path:
        return self.folder / "state" / "answers.json"

    def watcher(self, clock: Callable[[], float] | None = None) -> Watcher:
        return Watcher(
            self.scheduler.query, self.file, lambda: list(self.live), self.policy, clock or self.clock
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_one_asks_the_other_knows(place: Place) -> None:
    assert place.watcher().states([A], 2) == {A: RUNS}
    place.clock.now += 1
    assert place.watcher().states([A], 2)[A].age == 1
    assert place.scheduler.asked == [[A]]


def test_an_answer_that_is_too_old_is_asked_for_again(place: Place) -> None:
    place.watcher().states([A], 2)
    place.clock.now += 3
    assert place.watcher().states([A], 2)[A].age == 0
    assert len(place.scheduler.asked) == 2


def test_one_question_is_for_all_that_others_want_and_all_that_live(place: Place) -> None:
    place.watcher().states([A])
    place.live = [C]
    place.clock.now += 100
    place.watcher().states([B])
    assert place.scheduler.asked[1] == [A, B, C]
    assert place.watcher().states([A], 2)[A].age == 0


def test_jobs_that_ended_or_that_nobody_wants_are_not_asked_for(place: Place) -> None:
    place.scheduler.jobs[A] = JobStatus(state="SHUTDOWN")
    place.watcher().states([A, B])
    place.clock.now += POLICY.wanted + 1
    place.watcher().states([C])
    assert place.scheduler.asked[1] == [C]


def test_a_job_that_the_scheduler_does_not_know_is_left_out(place: Place) -> None:
    assert place.watcher().states([A, C]) == {A: RUNS}


def test_a_silent_scheduler_leaves_its_last_words_standing(place: Place) -> None:
    watcher = place.watcher()
    watcher.states([A])
    place.scheduler.down = True
    place.clock.now += 725
    assert watcher.states([A, C]) == {
        A: JobStatus(state="LAUNCHING", age=725),
        C: JobStatus(state="UNKNOWN", reason="slurmctld does not answer"),
    }
    assert watcher.problem == "slurmctld does not answer"
    other = place.watcher()
    other.states([A])
    assert other.problem == "slurmctld does not answer"
    place.scheduler.down = False
    place.clock.now += POLICY.retry
    assert watcher.states([A]) == {A: RUNS}
    assert watcher.problem == ""


def test_after_a_failure_nobody_asks_for_a_while(place: Place) -> None:
    place.scheduler.down = True
    for _ in range(3):
        place.watcher().states([A])
    assert len(place.scheduler.asked) == 1
    place.clock.now += POLICY.retry
    place.watcher().states([A])
    assert len(place.scheduler.asked) == 2


def test_young_answers_are_good_while_the_scheduler_is_silent(place: Place) -> None:
    watcher = place.watcher()
    watcher.states([A])
    place.scheduler.down = True
    place.clock.now += 1
    place.watcher().states([B])
    watcher.states([A], 30)
    assert watcher.problem == ""


def test_answers_are_private(place: Place) -> None:
    place.watcher().states([A])
    assert {stat.S_IMODE(file.stat().st_mode) for file in place.file.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"answers": 1}', "\xff", '{"answers": {"x": {"time": 1}}}'])
def test_a_damaged_file_is_no_answer(place: Place, text: str) -> None:
    place.file.parent.mkdir()
    place.file.write_bytes(text.encode("latin-1"))
    assert place.watcher().states([A], 30) == {A: RUNS}


def test_a_clock_that_is_ahead_makes_no_answer_young(place: Place) -> None:
    place.watcher().states([A])
    place.clock.now -= 1000
    assert place.watcher().states([A], 30) == {A: RUNS}
    assert len(place.scheduler.asked) == 2


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    place = Place(tmp_path)
    assert place.watcher().states([A], 30) == {A: RUNS}
    assert place.watcher().states([A], 30) == {A: RUNS}
    assert len(place.scheduler.asked) == 2


def test_a_crowd_asks_twice_at_most(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.scheduler.slow = 0.2
    barrier = threading.Barrier(30)
    told = []

    def ask() -> None:
        barrier.wait()
        told.append(place.watcher(time.time).states([A]))

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each[A].state for each in told] == ["LAUNCHING"] * 30
    assert len(place.scheduler.asked) <= 2


def test_who_has_an_old_answer_does_not_wait_for_a_scheduler_that_hangs(tmp_path: Path) -> None:
    place = Place(tmp_path, Policy(patience=0.05))
    place.watcher(time.time).states([A])
    place.scheduler.slow = 3.0
    hanging = threading.Thread(target=place.watcher(time.time).states, args=([A],))
    hanging.start()
    deadline = time.monotonic() + 10
    while len(place.scheduler.asked) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    began = time.monotonic()
    assert place.watcher(time.time).states([A])[A].state == "LAUNCHING"
    assert time.monotonic() - began < 1.5
    hanging.join()
    assert len(place.scheduler.asked) == 2


def test_gaps_grow_and_start_anew_after_a_change() -> None:
    gaps = Gaps(Policy(first=2, factor=1.5, longest=6))
    assert [gaps.next(changed=False) for _ in range(5)] == [2, 3, 4.5, 6, 6]
    assert [gaps.next(changed=True), gaps.next(changed=False)] == [2, 3]


def test_old_memories_fade() -> None:
    old = Memory({A: Answer(0, RUNS, 0), B: Answer(0, RUNS, 0)})
    new = old.learn([B], {}, [B], POLICY.memory + 1, POLICY)
    assert set(new.answers) == {B}


@given(st.binary(max_size=200))
def test_any_file_is_read(content: bytes) -> None:
    try:
        memory = msgspec.json.decode(content, type=Memory)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    memory.tell([A], 0.0)


HANDLES = [f"slurm://{number}" for number in range(4)]


class Watching(RuleBasedStateMachine):
    """Several watchers of one scheduler: whatever happens, nobody is told what the scheduler did not say."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.place = Place(Path(self.folder.name))
        self.place.scheduler.jobs = {}
        self.said: dict[str, list[tuple[float, JobStatus | None]]] = {handle: [] for handle in HANDLES}
        self.watchers = [self.place.watcher() for _ in range(3)]

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(seconds=st.floats(0.1, 1000))
    def time_passes(self, seconds: float) -> None:
        self.place.clock.now += seconds

    @rule(handle=st.sampled_from(HANDLES), state=st.sampled_from(["PENDING", "LAUNCHING", "FAILED", None]))
    def a_job_changes(self, handle: str, state: str | None) -> None:
        if state is None:
            self.place.scheduler.jobs.pop(handle, None)
        else:
            self.place.scheduler.jobs[handle] = JobStatus(state=state)  # type: ignore[arg-type]

    @rule(down=st.booleans())
    def the_scheduler_goes_or_comes(self, down: bool) -> None:
        self.place.scheduler.down = down

    @rule(live=st.lists(st.sampled_from(HANDLES), unique=True))
    def jobs_are_submitted(self, live: list[str]) -> None:
        self.place.live = live

    @rule(
        who=st.integers(0, 2),
        handles=st.lists(st.sampled_from(HANDLES), min_size=1, unique=True),
        max_age=st.sampled_from([0.0, 2.0, 30.0]),
    )
    def somebody_asks(self, who: int, handles: list[str], max_age: float) -> None:
        scheduler, now = self.place.scheduler, self.place.clock.now
        before = len(scheduler.asked)
        told = self.watchers[who].states(handles, max_age)
        questions = scheduler.asked[before:]
        assert len(questions) <= 1
        for question in questions:
            assert set(question) >= {*handles, *self.place.live}
            if not scheduler.down:
                for handle in question:
                    self.said[handle].append((now, scheduler.jobs.get(handle)))
        for handle in handles:
            self.check(handle, told.get(handle), now, max_age, silent=bool(self.watchers[who].problem))

    def check(self, handle: str, told: JobStatus | None, now: float, max_age: float, *, silent: bool) -> None:
        if not self.said[handle]:
            assert told is not None
            assert (told.state, bool(told.reason)) == ("UNKNOWN", True)
            return
        moment, status = self.said[handle][-1]
        if status is None:
            assert told is None
        else:
            assert told is not None
            assert told.state == status.state
            assert told.age == pytest.approx(now - moment)
        if not silent:
            assert now - moment <= max_age


TestWatching = Watching.TestCase
