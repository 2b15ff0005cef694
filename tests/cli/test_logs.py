"""`aegis logs`: the job's own words, its servers', or else the scheduler's."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Site, command_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

ONE = "slurm://1"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    command_line(made, monkeypatch)
    return made


def test_the_log_of_a_job(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job(ONE, RUNNING)
    site.run(ONE).err.write_text("one\ntwo é\nthree")
    assert aegis("logs", "1").out == "one\ntwo é\nthree"
    for count, expected in ((0, ""), (1, "three"), (9, "one\ntwo é\nthree")):
        assert aegis("logs", "1", "-n", str(count)).out == expected


def test_the_log_of_an_instance(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job(ONE, RUNNING)
    for name in ("m-0", "a b;$(touch X)"):
        (site.run(ONE).instances / f"{name}.log").write_text(f"of {name}\n")
        assert aegis("logs", "1", "--instance", name).out == f"of {name}\n"
    said = aegis("logs", "1", "--instance", "m-1")
    assert said.code == 4
    assert "did you mean `m-0`?" in said.err
    assert aegis("logs", "1", "--instance", "../../x").code == 4


def test_what_the_scheduler_wrote_of_a_job_that_never_began(
    aegis: Callable[..., Outcome], site: Site
) -> None:
    log = site.folder / "slurm-1.out"
    log.write_text("slurmstepd: error: execve failed\n")
    site.job(ONE, JobStatus(state="FAILED", reason="launch failed", log=str(log)))
    for _ in range(2):
        said = aegis("logs", "1")
        assert said.out == "slurmstepd: error: execve failed\n"
        assert said.err == f"the job has no log of its own; this is {log}\n"
        aegis("status")  # which notes the end
    assert aegis("logs", "1", "-n", "1").out == said.out


def test_a_job_without_any_log(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job(ONE, JobStatus(state="PENDING", log=str(site.folder / "none")))
    said = aegis("logs", "1")
    assert (said.code, said.out, said.err) == (0, "", f"{ONE} has written nothing\n")


def test_who_follows_a_job_that_waits_hears_why(
    aegis: Callable[..., Outcome], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.job(ONE, JobStatus(state="PENDING", reason="waits for free nodes"))

    def sleep(seconds: float) -> None:
        site.slurm.answers[ONE] = JobStatus(state="SHUTDOWN", reason="cancelled")

    monkeypatch.setattr("time.sleep", sleep)
    said = aegis("logs", "-f", "1")
    assert said.err == f"{ONE} PENDING: waits for free nodes\n{ONE} has written nothing\n"


def test_a_job_of_others(aegis: Callable[..., Outcome], site: Site) -> None:
    log = site.folder / "other.out"
    log.write_text("hello\n")
    site.slurm.answers["slurm://7"] = JobStatus(state="LAUNCHING", log=str(log))
    assert aegis("logs", "7").out == "hello\n"
    assert aegis("logs", "7", "--instance", "x").code == 4


def test_components(aegis: Callable[..., Outcome], site: Site) -> None:
    for number in (0, 1):
        site.job(f"slurm://5+{number}", RUNNING)
        site.run(f"slurm://5+{number}").err.write_text(f"component {number}\n")
    assert aegis("logs", "5+1").out == "component 1\n"
    assert aegis("logs", "5").out == "==> slurm://5+0 <==\ncomponent 0\n==> slurm://5+1 <==\ncomponent 1\n"
    said = aegis("logs", "-f", "5")
    assert said.code == 4
    assert "name one of slurm://5+0, slurm://5+1" in said.err


def test_following_ends_with_the_job(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job(ONE, RUNNING)
    log = site.run(ONE).err
    log.write_text("first\n")

    def job() -> None:
        deadline = time.monotonic() + 10
        while not site.slurm.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        with log.open("a") as stream:
            stream.write("last\n")
        site.slurm.answers[ONE] = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)

    thread = threading.Thread(target=job)
    thread.start()
    assert aegis("logs", "-f", "1").out == "first\nlast\n"
    thread.join()


def test_unknown(aegis: Callable[..., Outcome], site: Site) -> None:
    assert aegis("logs", "1; touch X").code == 4
