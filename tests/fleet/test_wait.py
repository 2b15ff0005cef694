"""Waiting: until ready, until ended, through hiccups, and no longer than allowed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError, DeadlineError, NotFoundError
from aegis.fleet.wait import Outcome, wait_for
from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aegis.fleet.wait import Goal

ONE = "slurm://1"
WAITS = JobStatus(state="PENDING", reason="waits for free nodes")
CANCELLED = JobStatus(state="SHUTDOWN", word="CANCELLED", reason="cancelled by alice")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


class Waiting:
    """A wait in a thread, and what it said."""

    def __init__(
        self, site: Site, handle: str = ONE, goal: Goal = "ready", timeout: float | None = 20
    ) -> None:
        self.said: list[str] = []
        self.outcome: Outcome | None = None
        self.error: AegisError | None = None
        self.thread = threading.Thread(target=self._run, args=(site, handle, goal, timeout))
        self.thread.start()

    def _run(self, site: Site, handle: str, goal: Goal, timeout: float | None) -> None:
        try:
            self.outcome = wait_for(site.jobs(), handle, goal, self.said.append, timeout)
        except AegisError as error:
            self.error = error

    def until(self, true: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 15
        while not true():
            assert time.monotonic() < deadline, (self.said, self.error)
            assert self.thread.is_alive(), (self.said, self.error)
            time.sleep(0.01)

    def end(self) -> Outcome:
        self.thread.join(20)
        assert self.outcome is not None, self.error
        return self.outcome

    def fail(self) -> AegisError:
        self.thread.join(20)
        assert self.error is not None, self.outcome
        return self.error


def ready(site: Site, servers: Servers, handle: str = ONE, **fields: Any) -> None:
    endpoints = site.run(handle).path / "endpoints"
    endpoints.write_text(f"{servers.address}\n")
    values = {"instances": 1, "registry_url": servers.url, **fields}
    site.note(handle, state="READY", ready=time.time(), settled=True, **values)


def test_from_the_queue_to_endpoints(site: Site, servers: Servers) -> None:
    site.job(ONE, WAITS)
    waiting = Waiting(site)
    waiting.until(lambda: waiting.said == ["slurm://1 PENDING: waits for free nodes"])
    site.slurm.answers[ONE] = RUNNING
    waiting.until(lambda: waiting.said[1:] == ["slurm://1 LAUNCHING on node[1-2]"])
    with site.run(ONE).err.open("a") as log:
        log.write("12:00:00 m-0 starting\n12:00:01 m-0 hea")
        log.flush()
        waiting.until(lambda: waiting.said[2:] == ["12:00:00 m-0 starting"])
        log.write("lthy\n")
    ready(site, servers)
    outcome = waiting.end()
    assert (outcome.endpoints, outcome.problem) == ((servers.address,), None)
    assert waiting.said[3:] == ["12:00:01 m-0 healthy", "slurm://1 READY on node[1-2]"] or waiting.said[
        3:
    ] == [
        "12:00:01 m-0 healthy",
        "slurm://1 READY",
    ]


def test_a_job_that_ends_first_says_why(site: Site) -> None:
    site.job(ONE, WAITS)
    waiting = Waiting(site)
    waiting.until(lambda: waiting.said)
    site.slurm.answers[ONE] = CANCELLED
    error = waiting.fail()
    assert error.message == "job slurm://1 ended before its servers were ready: cancelled by alice"
    assert error.hint == f"its log is {site.run(ONE).err}"
    assert error.exit_code == 1


def test_the_scheduler_s_reason_is_waited_for(site: Site) -> None:
    site.job(ONE, RUNNING, state="LAUNCHING")
    waiting = Waiting(site)
    waiting.until(lambda: waiting.said)
    site.note(ONE, state="SHUTDOWN", reason="shut down", ended=time.time())
    waiting.until(lambda: len(waiting.said) == 2)
    site.slurm.answers[ONE] = JobStatus(
        state="FAILED", word="TIMEOUT", reason="killed at its walltime of 00:10:00"
    )
    assert "killed at its walltime of 00:10:00" in waiting.fail().message


def test_a_failed_job_is_told_at_once(site: Site) -> None:
    site.job(ONE, RUNNING, state="FAILED", reason="the instance failed: model not found\nmore", ended=1.0)
    assert Waiting(site).fail().message.endswith("ready: the instance failed: model not found")


def test_a_scheduler_that_is_away_ends_no_wait(site: Site, servers: Servers) -> None:
    site.job(ONE, WAITS)
    waiting = Waiting(site)
    waiting.until(lambda: len(waiting.said) == 1)
    site.slurm.down = "slurmctld does not answer"
    waiting.until(lambda: len(waiting.said) == 2)
    asked = len(site.slurm.asked)
    waiting.until(lambda: len(site.slurm.asked) > asked + 3)
    assert len(waiting.said) == 2
    assert "the scheduler does not answer" in waiting.said[1]
    site.slurm.down = ""
    site.slurm.answers[ONE] = RUNNING
    ready(site, servers)
    assert waiting.end().endpoints == (servers.address,)


def test_a_job_is_ready_while_the_scheduler_is_away(site: Site, servers: Servers) -> None:
    site.job(ONE, RUNNING, state="LAUNCHING")
    site.slurm.down = "slurmctld does not answer"
    waiting = Waiting(site)
    waiting.until(lambda: waiting.said)
    ready(site, servers)
    assert waiting.end().endpoints == (servers.address,)


def test_settled_is_not_ready_while_no_server_answers(site: Site, servers: Servers) -> None:
    servers.states = {"m-0": "unhealthy"}
    site.job(ONE, RUNNING, state="LAUNCHING")
    waiting = Waiting(site)
    ready(site, servers)
    waiting.until(lambda: any("no instance is healthy" in line for line in waiting.said))
    servers.states = {"m-0": "healthy"}
    assert waiting.end().endpoints == (servers.address,)


def test_the_timeout(site: Site) -> None:
    site.job(ONE, WAITS)
    began = time.monotonic()
    error = Waiting(site, timeout=0.2).fail()
    assert isinstance(error, DeadlineError)
    assert error.message == "job slurm://1 is not ready after 0.2 s, and goes on"
    assert time.monotonic() - began < 5


def test_some_of_it(site: Site, servers: Servers) -> None:
    site.job(ONE, RUNNING)
    ready(site, servers, instances=2)
    outcome = Waiting(site).end()
    assert outcome.endpoints == (servers.address,)
    assert outcome.problem is not None
    assert (outcome.problem.exit_code, outcome.problem.message) == (7, "1 of 2 instances are healthy")


def test_components_are_waited_for_together(site: Site, servers: Servers) -> None:
    site.job("slurm://1+0", RUNNING)
    site.job("slurm://1+1", RUNNING)
    waiting = Waiting(site)
    ready(site, servers, "slurm://1+0")
    waiting.until(lambda: any("slurm://1+0 READY" in line for line in waiting.said))
    assert waiting.outcome is None
    site.note("slurm://1+1", state="FAILED", reason="no such model", ended=time.time())
    outcome = waiting.end()
    assert outcome.endpoints == (servers.address,)
    assert outcome.problem is not None
    assert outcome.problem.message == "1 of 2 instances are healthy; slurm://1+1: no such model"


def test_until_ended(site: Site) -> None:
    site.job(ONE, RUNNING, state="READY", ready=1.0)
    waiting = Waiting(site, goal="ended")
    waiting.until(lambda: waiting.said)
    site.slurm.answers[ONE] = CANCELLED
    assert waiting.end().problem is None


def test_until_ended_tells_a_failure(site: Site) -> None:
    site.job(ONE, JobStatus(state="FAILED", word="NODE_FAIL", reason="a node failed"), state="READY")
    problem = Waiting(site, goal="ended").end().problem
    assert problem is not None
    assert (problem.exit_code, problem.message) == (1, "job slurm://1 failed: a node failed")


def test_an_unknown_job(site: Site) -> None:
    assert isinstance(Waiting(site, "slurm://9").fail(), NotFoundError)
