"""Ending jobs: drained, stopped through their registry, cancelled; and nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from aegis.errors import DeadlineError, NotFoundError, SiteError
from aegis.fleet.stop import Wish, keeper, stop
from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONE = "slurm://1"
WAITS = JobStatus(state="PENDING", reason="waits for free nodes")
CANCELLED = JobStatus(state="SHUTDOWN", word="CANCELLED", reason="cancelled by alice")
COMPLETED = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)
QUICK = Wish(drain=5, timeout=3)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.slurm.on_cancel = lambda handle: made.slurm.answers.update(
        {known: CANCELLED for known in made.slurm.answers if known.partition("+")[0] == handle}
    )
    return made


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


@pytest.fixture
def serving(site: Site, servers: Servers) -> Callable[..., None]:
    """Make a job that serves, and whose head ends it when the registry is told to stop."""

    def make(handle: str = ONE, *, ends: bool = True) -> None:
        site.job(handle, RUNNING, state="READY", ready=1.0, registry_url=servers.url)

        def on_stop() -> None:
            site.note(handle, state="SHUTDOWN", reason="shut down through the registry", ended=time.time())
            if ends:
                site.slurm.answers[handle] = COMPLETED

        servers.on_stop = on_stop

    return make


def shut(site: Site, handle: str = ONE, wish: Wish = QUICK) -> list[str]:
    said: list[str] = []
    jobs = site.jobs()
    stop(jobs, jobs.find_all(handle), said.append, wish)
    return said


def test_servers_are_drained_and_stopped_and_the_job_ends_by_itself(
    site: Site, servers: Servers, serving: Callable[..., None]
) -> None:
    serving()
    servers.busy = 4
    assert shut(site) == ["slurm://1 is shut down"]
    assert servers.posts == ["/services/m-0/drain", "/stop"]
    assert servers.busy == 0
    assert site.slurm.cancelled == []
    assert shut(site) == ["slurm://1 has ended already: shut down through the registry"]


def test_gateways_stay_until_the_servers_have_answered(
    site: Site, servers: Servers, serving: Callable[..., None]
) -> None:
    serving()
    servers.others = [structs.replace(servers.service("m-0"), service_id="gateway-0", service_type="gateway")]
    shut(site)
    assert servers.posts == ["/services/m-0/drain", "/stop"]


def test_busy_servers_are_not_waited_for_for_ever(
    site: Site, servers: Servers, serving: Callable[..., None]
) -> None:
    serving()
    servers.busy = 10**9
    began = time.monotonic()
    shut(site, wish=Wish(drain=0.5, timeout=3))
    assert time.monotonic() - began < 3
    assert servers.posts[-1] == "/stop"


def test_a_job_that_does_not_end_by_itself_is_cancelled(
    site: Site, servers: Servers, serving: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis.fleet.stop.GRACE_SECONDS", 0.2)
    serving(ends=False)
    assert shut(site) == ["slurm://1 is shut down"]
    assert site.slurm.cancelled == [ONE]


def test_a_waiting_job_is_just_cancelled(site: Site) -> None:
    site.job(ONE, WAITS)
    assert shut(site) == ["slurm://1 was waiting in the queue: cancelled"]
    assert site.slurm.cancelled == [ONE]
    assert (site.read(ONE).state, site.read(ONE).reason) == ("SHUTDOWN", "cancelled by alice")


def test_where_the_registry_is_silent_the_job_is_cancelled(
    site: Site, servers: Servers, serving: Callable[..., None]
) -> None:
    serving()
    servers.registry_down = True
    said = shut(site)
    assert said[0].startswith("warning: slurm://1: ")
    assert said[1:] == ["slurm://1 is shut down"]
    assert site.slurm.cancelled == [ONE]


def test_one_component_of_a_slurm_job(site: Site, serving: Callable[..., None]) -> None:
    site.job("slurm://1+0", RUNNING, state="READY")
    serving("slurm://1+1", ends=False)
    assert shut(site, "1+1") == ["slurm://1+1 is shut down"]
    assert site.slurm.cancelled == ["slurm://1+1"]
    assert site.read("slurm://1+0").state == "READY"


@pytest.mark.parametrize(
    ("handle", "why"),
    [
        ("slurm://1+0", "holds the script of all components"),
        ("pbs://1.s+0", "shares its job"),
    ],
)
def test_a_component_that_cannot_be_cancelled_is_stopped_alone(
    site: Site, servers: Servers, serving: Callable[..., None], handle: str, why: str
) -> None:
    site.job(handle.replace("+0", "+1"), RUNNING, state="READY")
    serving(handle, ends=False)
    said = shut(site, handle)
    assert why in said[0]
    assert said[1:] == [f"{handle} is shut down"]
    assert site.slurm.cancelled == site.pbs.cancelled == []
    assert servers.posts[-1] == "/stop"


def test_a_component_that_nothing_reaches_is_refused(site: Site) -> None:
    site.job("pbs://1.s+0", RUNNING, state="LAUNCHING")
    site.job("pbs://1.s+1", RUNNING, state="LAUNCHING")
    with pytest.raises(SiteError, match="it cannot be cancelled by itself"):
        shut(site, "1+0")
    assert site.pbs.cancelled == []


def test_the_first_component_of_a_slurm_job_is_asked_through_slurm_where_its_registry_is_silent(
    site: Site,
) -> None:
    site.job("slurm://1+0", RUNNING, state="LAUNCHING")
    site.job("slurm://1+1", RUNNING, state="LAUNCHING")
    site.slurm.on_cancel = lambda handle: site.note(handle, state="SHUTDOWN", ended=time.time())
    assert shut(site, "1+0") == ["slurm://1+0 is shut down"]
    assert site.slurm.cancelled == ["slurm://1+0"]


def test_a_job_that_lost_its_head_is_cancelled(site: Site) -> None:
    lost = JobStatus(state="FAILED", word="RUNNING", reason="its first node node1 failed")
    site.job(ONE, lost, state="READY", ready=1.0)
    assert site.jobs().views([site.read(ONE)])[0].model_status == "FAILED"
    assert not site.read(ONE).accounted
    assert shut(site) == ["slurm://1 is shut down"]
    assert site.slurm.cancelled == [ONE]


def test_a_component_that_ended_while_its_job_runs(site: Site) -> None:
    site.job("slurm://1+0", RUNNING, state="LAUNCHING")
    site.job("slurm://1+1", RUNNING, state="SHUTDOWN", reason="shut down", ended=5.0)
    assert shut(site, "1+1") == ["slurm://1+1 has ended already: shut down"]


def test_a_component_that_waits_is_refused(site: Site) -> None:
    site.job("slurm://1+0", WAITS)
    site.job("slurm://1+1", WAITS)
    with pytest.raises(SiteError, match="has not started") as error:
        shut(site, "1+1")
    assert error.value.hint == "`aegis shutdown slurm://1` cancels the whole job"


def test_all_components_are_ended_with_their_job(site: Site, serving: Callable[..., None]) -> None:
    site.job("slurm://1+0", RUNNING, state="LAUNCHING")
    serving("slurm://1+1", ends=False)
    assert shut(site, "1") == ["slurm://1+0 is shut down", "slurm://1+1 is shut down"]
    assert site.slurm.cancelled == [ONE]


def test_a_job_of_others_is_cancelled(site: Site) -> None:
    jobs = site.jobs()
    jobs._present = {"slurm"}
    site.slurm.answers["slurm://7"] = JobStatus(state="LAUNCHING", name="x-vec-inf")
    said: list[str] = []
    stop(jobs, jobs.find_all("7"), said.append, QUICK)
    assert said == ["slurm://7 is shut down"]
    assert site.slurm.cancelled == ["slurm://7"]


def test_a_job_that_goes_on_is_told(site: Site) -> None:
    site.slurm.on_cancel = lambda handle: None
    site.job(ONE, RUNNING, state="LAUNCHING")
    with pytest.raises(DeadlineError, match="slurm://1 has not ended after 1 s"):
        shut(site, wish=Wish(timeout=1))


def test_a_silent_scheduler_is_told(site: Site) -> None:
    site.job(ONE, RUNNING)
    site.slurm.down = "slurmctld does not answer"
    with pytest.raises(SiteError, match="slurmctld does not answer"):
        shut(site)


def test_without_waiting(site: Site, servers: Servers, serving: Callable[..., None]) -> None:
    serving(ends=False)
    servers.on_stop = lambda: None
    assert shut(site, wish=Wish(wait=False)) == ["slurm://1 is shutting down"]
    assert servers.posts[-1] == "/stop"
    assert site.slurm.cancelled == []


def test_servers_alone(site: Site, servers: Servers, serving: Callable[..., None]) -> None:
    serving(ends=False)
    assert shut(site, wish=Wish(cancel=False)) == ["slurm://1 is shut down"]
    assert site.slurm.cancelled == []
    site.job("slurm://2", RUNNING, state="LAUNCHING")
    with pytest.raises(SiteError, match="the servers of slurm://2 cannot be asked to stop"):
        shut(site, "slurm://2", Wish(cancel=False))


def test_the_job_that_keeps_an_endpoints_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    path = str(site.folder / "e.txt")
    site.job("slurm://1", CANCELLED, endpoints_file=path, state="LAUNCHING")
    site.job("slurm://2", RUNNING, endpoints_file=path, state="READY")
    site.job("slurm://3", RUNNING, endpoints_file=f"{path}2", state="READY")
    assert keeper(site.jobs(), "e.txt").job == "slurm://2"
    site.slurm.answers["slurm://2"] = CANCELLED
    with pytest.raises(NotFoundError, match="no running job keeps"):
        keeper(site.jobs(), "e.txt")


def test_a_copy_of_a_remote_job_s_endpoints_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    site.job("slurm://1", RUNNING, state="READY", base_url="http://node2:8001/v1")
    site.job("slurm://2", RUNNING, state="READY", base_url="http://node1:8000/v1")
    (site.folder / "copy.txt").write_text("node1:8000\nnode1:8001\n")
    jobs = site.jobs()
    jobs.is_here = False
    assert keeper(jobs, "copy.txt").job == "slurm://2"
