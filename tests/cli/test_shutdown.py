"""`aegis shutdown`: by handle, id or endpoints file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site, command_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Outcome

ONE, TWO = "slurm://1", "slurm://2"
WAITS = JobStatus(state="PENDING")
CANCELLED = JobStatus(state="SHUTDOWN", word="CANCELLED", reason="cancelled by its user")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    command_line(made, monkeypatch)
    monkeypatch.chdir(tmp_path)
    made.slurm.on_cancel = lambda handle: made.slurm.answers.update({handle: CANCELLED})
    return made


@pytest.fixture
def servers(site: Site) -> Iterator[Servers]:
    made = Servers()
    site.job(
        *(ONE, RUNNING),
        state="READY",
        ready=1.0,
        registry_url=made.url,
        endpoints_file=str(site.folder / "aegis_endpoints.txt"),
    )

    def on_stop() -> None:
        site.note(ONE, state="SHUTDOWN", reason="shut down through the registry", ended=time.time())
        site.slurm.answers[ONE] = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)

    made.on_stop = on_stop
    yield made
    made.close()


@pytest.mark.parametrize("args", [("1",), (ONE,), ("--job-id", "1"), ("1", "--job-id", "1")])
def test_a_job(aegis: Callable[..., Outcome], site: Site, servers: Servers, args: tuple[str, ...]) -> None:
    said = aegis("shutdown", *args)
    assert (said.code, said.out, said.err) == (0, "", f"{ONE} is shut down\n")
    assert servers.posts[-1] == "/stop"
    again = aegis("shutdown", *args)
    assert (again.code, again.err) == (0, f"{ONE} has ended already: shut down through the registry\n")


@pytest.mark.parametrize("args", [(), ("--endpoints-file", "aegis_endpoints.txt")])
def test_the_job_that_keeps_a_file(
    aegis: Callable[..., Outcome], site: Site, servers: Servers, args: tuple[str, ...]
) -> None:
    assert aegis("shutdown", *args).err == f"{ONE} is shut down\n"
    assert site.slurm.cancelled == []
    assert aegis("shutdown", *args).code == 4


def test_servers_first_and_then_another_job(
    aegis: Callable[..., Outcome], site: Site, servers: Servers
) -> None:
    site.job(TWO, WAITS)
    said = aegis("shutdown", "--endpoints-file", "aegis_endpoints.txt", "--job-id", "2")
    assert said.err == f"{ONE} is shut down\n{TWO} was waiting in the queue: cancelled\n"
    assert site.slurm.cancelled == [TWO]


def test_a_file_that_nobody_keeps_any_more_keeps_no_job_alive(
    aegis: Callable[..., Outcome], site: Site, servers: Servers
) -> None:
    said = aegis("shutdown", "--endpoints-file", "old.txt", "--job-id", "1")
    assert said.code == 0
    assert said.err == f"no running job keeps {site.folder}/old.txt\n{ONE} is shut down\n"


def test_a_job_that_aegis_does_not_know(aegis: Callable[..., Outcome], site: Site) -> None:
    site.slurm.answers["slurm://7"] = JobStatus(state="LAUNCHING", name="x-vec-inf")
    assert aegis("shutdown", "--job-id", "7").err == "slurm://7 is shut down\n"
    assert site.slurm.cancelled == ["slurm://7"]


@pytest.mark.parametrize("name", ["9", "1; touch X", "$(touch X)", "-1"])
def test_unknown(aegis: Callable[..., Outcome], site: Site, name: str) -> None:
    assert aegis("shutdown", "--", name).code == 4
    assert aegis("shutdown", "--job-id", name).code == 4
    assert site.slurm.cancelled == []
    assert not (site.folder / "X").exists()
    assert not (site.folder / "ran").exists()


def test_an_empty_name_is_no_job_and_not_the_default(
    aegis: Callable[..., Outcome], site: Site, servers: Servers
) -> None:
    assert [aegis("shutdown", "").code, aegis("shutdown", "--job-id", "").code] == [4, 4]
    assert servers.posts == []


def test_wrong_usage(aegis: Callable[..., Outcome], site: Site) -> None:
    assert aegis("shutdown", "1", "--job-id", "2").code == 2
    assert aegis("shutdown", "1", "--timeout", "-1").code == 2
