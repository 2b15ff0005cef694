"""`aegis wait`: endpoints on stdout, everything else on stderr, and the exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site, command_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Outcome

CANCELLED = JobStatus(state="SHUTDOWN", word="CANCELLED", reason="cancelled by its user")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    command_line(made, monkeypatch)
    return made


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def ready(site: Site, servers: Servers, instances: int) -> None:
    site.job(
        *("slurm://1", RUNNING),
        state="READY",
        ready=1.0,
        settled=True,
        instances=instances,
        registry_url=servers.url,
    )
    (site.run("slurm://1").path / "endpoints").write_text(f"{servers.address}\n")
    site.run("slurm://1").err.write_text("12:00 m-0 healthy\n")


def test_ready(aegis: Callable[..., Outcome], site: Site, servers: Servers) -> None:
    ready(site, servers, 1)
    said = aegis("wait", "1")
    assert (said.code, said.out) == (0, f"{servers.address}\n")
    assert said.err == "12:00 m-0 healthy\nslurm://1 READY\n"


def test_partly_ready(aegis: Callable[..., Outcome], site: Site, servers: Servers) -> None:
    ready(site, servers, 2)
    said = aegis("wait", "1", "--for", "ready")
    assert (said.code, said.out) == (7, f"{servers.address}\n")
    assert "error: 1 of 2 instances are healthy" in said.err


def test_ended_first(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", CANCELLED)
    said = aegis("wait", "1")
    assert (said.code, said.out) == (1, "")
    assert "error: job slurm://1 ended before its servers were ready: cancelled by its user" in said.err
    assert f"hint: its log is {site.run('slurm://1').err}" in said.err


def test_ended(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", CANCELLED)
    site.job("slurm://2", JobStatus(state="FAILED", word="NODE_FAIL", reason="a node failed: node1"))
    assert aegis("wait", "1", "--for", "ended").code == 0
    said = aegis("wait", "2", "--for", "ended")
    assert said.code == 1
    assert "error: job slurm://2 failed: a node failed: node1" in said.err


def test_too_long(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", RUNNING)
    said = aegis("wait", "1", "--timeout", "0.1")
    assert said.code == 5
    assert "job slurm://1 is not ready after 0.1 s" in said.err


def test_unknown(aegis: Callable[..., Outcome], site: Site) -> None:
    assert aegis("wait", "9").code == 4
    assert aegis("wait", "1", "--for", "ever").code == 2


def test_who_stops_waiting_hears_that_the_job_goes_on(
    aegis: Callable[..., Outcome], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.job("slurm://1", RUNNING)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aegis.fleet.wait.time.sleep", interrupted)
    said = aegis("wait", "1")
    assert (said.code, said.out) == (6, "")
    assert "error: interrupted; job 1 goes on\n hint: `aegis wait 1` waits again" in said.err
