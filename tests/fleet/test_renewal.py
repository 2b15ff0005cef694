"""The successors of a job: when they are submitted, what becomes of them, and when nobody tries any more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import SiteError
from aegis.fleet.renewal import QUEUE_SECONDS, RETRY_SECONDS, STARTS, Fate, Renewal, Terms

if TYPE_CHECKING:
    from aegis.schedulers.base import After

NOW = 1_000_000.0
HOUR = 3600.0
TERMS = Terms(began=NOW, walltime=12 * HOUR, startup=60.0)
WAITS = Fate("PENDING")


class Line:
    """A queue that does as it is told."""

    is_here = True
    absence = ""

    def __init__(self) -> None:
        self.submitted: list[After] = []
        self.cancelled: list[str] = []
        self.fates: dict[str, Fate] = {}
        self.refusal = ""
        self.other: str | None = None

    def waiting(self) -> str | None:
        return self.other

    def submit(self, after: After) -> str:
        if self.refusal:
            raise SiteError(self.refusal, hint="wait")
        self.submitted.append(after)
        return f"slurm://{len(self.submitted)}"

    def fate(self, handle: str) -> Fate | None:
        return self.fates.get(handle, WAITS)

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)


@pytest.fixture
def line() -> Line:
    return Line()


def renewal(line: Line, terms: Terms = TERMS, **how: object) -> Renewal:
    """Return the renewal of a job that serves; no thread drives it."""
    made = Renewal("slurm://0", line, **{"own_timer": False, **how})  # type: ignore[arg-type]
    made.close()
    made.begin(terms)
    return made


def test_the_successor_waits_in_the_queue_at_once_for_a_time_before_the_end(line: Line) -> None:
    each = renewal(line)
    each.step(NOW + 60)
    (after,) = line.submitted
    assert (after.job, after.seconds, after.time) == ("slurm://0", 10 * 3600, NOW + 10 * HOUR)
    assert (each.successor, each.problem) == ("slurm://1", "")
    each.step(NOW + 120)
    assert len(line.submitted) == 1


def test_without_a_scheduler_the_job_itself_waits_until_the_time_has_come(line: Line) -> None:
    each = renewal(line, own_timer=True)
    assert each.step(NOW + 60) == 10 * HOUR - 60
    assert not line.submitted
    each.step(NOW + 10 * HOUR)
    (after,) = line.submitted
    assert (after.seconds, after.time) == (None, None)


@given(
    walltime=st.integers(1, 10**6),
    startup=st.floats(0, 1e6),
    overlap=st.none() | st.integers(1, 10**6),
    until=st.none() | st.floats(NOW, NOW + 1e7),
)
def test_a_successor_is_due_while_its_predecessor_serves(
    walltime: float, startup: float, overlap: float | None, until: float | None
) -> None:
    terms = Terms(began=NOW, walltime=walltime, startup=startup, overlap=overlap, until=until)
    assert terms.began <= terms.due <= terms.began + walltime
    if overlap is None:
        assert terms.lead <= walltime / 2
        assert terms.lead == walltime / 2 or terms.lead >= QUEUE_SECONDS
    assert terms.is_last == (until is not None and until - NOW < walltime + 10)
    assert 0 <= (terms.after("slurm://0").seconds or 0) <= walltime


def test_the_last_job_has_no_successor(line: Line) -> None:
    renewal(line, Terms(began=NOW, walltime=HOUR, until=NOW + HOUR)).step(NOW)
    assert not line.submitted


def test_what_is_refused_is_tried_again_and_told_once(line: Line) -> None:
    each = renewal(line)
    line.refusal = "Slurm does not take the job: too many jobs"
    pauses = [each.step(NOW) for _ in range(8)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == RETRY_SECONDS
    assert each.news() == ["warning: no successor: Slurm does not take the job: too many jobs (wait)"]
    assert "too many jobs" in each.problem
    line.refusal = ""
    each.step(NOW)
    assert (each.successor, each.problem) == ("slurm://1", "")


def test_a_submission_that_seemed_to_fail_is_not_made_twice(line: Line) -> None:
    each = renewal(line)
    line.refusal = "sbatch did not answer within 60 s"
    each.step(NOW)
    line.refusal, line.other = "", "slurm://77"
    each.step(NOW)
    assert each.successor == "slurm://77"
    assert not line.submitted


def test_three_starts_that_fail_in_a_row_end_the_service(line: Line) -> None:
    each = renewal(line)
    for _ in range(20):
        each.step(NOW)
        line.fates = dict.fromkeys(["slurm://1", "slurm://2", "slurm://3"], Fate("FAILED", "no such model"))
    assert [after.failed_starts for after in line.submitted] == [0, 1, 2]
    assert [after.seconds is None for after in line.submitted] == [False, True, True]
    assert each.problem == "the service ends with this job: 3 starts in a row failed: no such model"
    assert each.news()[-1] == f"warning: {each.problem}"


def test_a_successor_that_replaced_itself_is_followed(line: Line) -> None:
    each = renewal(line)
    each.step(NOW)
    line.fates["slurm://1"] = Fate("FAILED", "a node broke", successor="slurm://9")
    each.step(NOW)
    assert each.successor == "slurm://9"
    assert len(line.submitted) == 1


def test_a_successor_that_somebody_cancelled_is_not_submitted_again(line: Line) -> None:
    each = renewal(line)
    each.step(NOW)
    line.fates["slurm://1"] = Fate("SHUTDOWN", "cancelled by alice")
    each.step(NOW)
    each.step(NOW)
    assert len(line.submitted) == 1
    assert "slurm://1 has ended: cancelled by alice" in each.problem


def test_silence_is_no_news(line: Line) -> None:
    each = renewal(line)
    each.step(NOW)
    line.fate = lambda handle: None  # type: ignore[method-assign]
    each.step(NOW)
    assert each.successor == "slurm://1"
    assert len(line.submitted) == 1


def test_whoever_shuts_the_service_down_cancels_the_successor(line: Line) -> None:
    each = renewal(line)
    each.step(NOW)
    each.cancel()
    assert line.cancelled == ["slurm://1"]
    assert each.news()[-1] == "slurm://1, which was to go on, is cancelled"


def test_a_job_that_fails_at_its_start_is_replaced_until_three_have_failed(line: Line) -> None:
    first = Renewal("slurm://5", line, own_timer=False, failed_starts=1)
    first.replace("slurm://0", None)
    assert [(each.job, each.failed_starts, each.seconds) for each in line.submitted] == [
        ("slurm://0", 2, None)
    ]
    second = Renewal("slurm://6", line, own_timer=False, failed_starts=STARTS - 1)
    second.replace("slurm://0", None)
    assert len(line.submitted) == 1
    assert "3 starts in a row failed" in second.problem


@pytest.mark.parametrize(("served", "counted"), [(math.inf, 0), (10.0, 1)])
def test_a_job_that_dies_while_it_serves_is_replaced_at_once(line: Line, served: float, counted: int) -> None:
    each = renewal(line)
    each.step(NOW)
    each.replace("slurm://0", served)
    assert line.cancelled == ["slurm://1"]
    assert [(after.job, after.failed_starts, after.seconds) for after in line.submitted[1:]] == [
        ("slurm://0", counted, None)
    ]


@given(st.lists(st.sampled_from([WAITS, None, Fate("FAILED", "x"), Fate("SHUTDOWN", "y")]), max_size=30))
def test_whatever_happens_no_more_than_three_are_lost_and_one_waits_at_most(
    fates: list[Fate | None],
) -> None:
    line = Line()
    each = renewal(line)
    lost = 0
    for fate in fates:
        each.step(NOW)
        if each.successor and line.fates.get(each.successor, WAITS) in {WAITS, None}:
            line.fates[each.successor] = fate  # type: ignore[assignment]
        each.step(NOW)
    lost = sum(fate == Fate("FAILED", "x") for fate in line.fates.values())
    assert lost <= STARTS
    assert len(line.submitted) - lost <= 1
