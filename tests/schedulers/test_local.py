"""This machine as a scheduler: real processes, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.processes import start_of
from aegis.runs import RunDir, find_run, index_folder
from aegis.schedulers.base import JobLogs, JobStatus
from aegis.schedulers.local import Local, new_handle, status_of

from .job_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A job outlives whoever submitted it, so nobody waits for its process.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

STUB = """#!/bin/bash
trap 'echo stopped; kill $!; exit 0' TERM
env -0 > env.txt
tr '\\0' '\\n' < /proc/$$/cmdline > cmdline.txt
touch ready
sleep 60 & wait
"""
FAILING = """#!/bin/bash
echo "error: earlier" >&2
echo "error: the model is gone" >&2
echo " hint: look for it" >&2
exit 1
"""


class Site:
    """A working directory, an index of jobs, and every job that was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "AEGIS_STATE_DIR": str(folder / "state"),
        }
        self.scheduler = Local(self.environ)
        self.logs = folder / "logs"

    def submit(self, stub: str = STUB, secrets: dict[str, str] | None = None, **changes: Any) -> str:
        python = self.folder / "python"
        if not python.exists():
            python.write_text(stub)
            python.chmod(0o755)
        values: dict[str, Any] = {"folder": str(self.logs / "model"), "stem": "model-7B", **changes}
        job = request(
            component("org/model-7B", endpoints_file=str(self.folder / "endpoints"), **values),
            work_dir=str(self.folder),
            python=str(python),
        )
        return self.scheduler.submit(job, self.scheduler.render(job), secrets or {}).handle

    def run(self, handle: str) -> RunDir:
        return find_run(handle, self.environ)

    def status(self, handle: str) -> JobStatus:
        return self.scheduler.query([handle])[handle]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for manifest in site.logs.rglob("*.json"):
        pid = RunDir.at(manifest.parent).read_manifest().pid
        if pid:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_this_machine_is_here(site: Site) -> None:
    info = site.scheduler.describe()
    assert (info.name, info.available) == ("local", True)


def test_a_job_lives_and_is_cancelled(site: Site) -> None:
    handle = site.submit()
    wait_for((site.folder / "ready").exists)
    run = site.run(handle)
    manifest = run.read_manifest()
    assert manifest.job == handle
    assert manifest.pid is not None
    assert manifest.pid_started == start_of(manifest.pid)
    assert (manifest.walltime, manifest.host, manifest.state) == (3600, os.uname().nodename, "PENDING")
    assert site.status(handle) == JobStatus(state="PENDING")
    assert site.scheduler.logs(handle) == JobLogs(str(run.out), str(run.err))
    assert os.getsid(manifest.pid) == manifest.pid  # it outlives the terminal
    assert stat.S_IMODE(run.script.stat().st_mode) & 0o700 == 0o700
    site.scheduler.cancel(handle)
    wait_for(lambda: "stopped" in run.out.read_text())
    wait_for(lambda: start_of(manifest.pid or 0) is None)
    assert site.status(handle).state == "FAILED"  # a real head notes SHUTDOWN itself
    site.scheduler.cancel(handle)  # nothing is left to end


def test_the_job_knows_its_handle_and_directory(site: Site) -> None:
    handle = site.submit()
    wait_for((site.folder / "ready").exists)
    environment = (site.folder / "env.txt").read_text().split("\0")
    assert f"AEGIS_JOB={handle}" in environment
    assert f"AEGIS_RUN_DIR={site.run(handle).path}" in environment


def test_secrets_are_in_the_environment_of_the_job_alone(site: Site) -> None:
    handle = site.submit(secrets={"HF_TOKEN": "hf_secret"})
    wait_for((site.folder / "ready").exists)
    assert "HF_TOKEN=hf_secret" in (site.folder / "env.txt").read_text().split("\0")
    assert "hf_secret" not in (site.folder / "cmdline.txt").read_text()
    files = [file for file in site.run(handle).path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".sh", ".json", ".out", ".err"}
    assert not [file for file in files if "hf_secret" in file.read_text()]


@pytest.mark.parametrize("started", [0, None])
def test_a_pid_that_is_another_process_now_is_not_touched(site: Site, started: int | None) -> None:
    handle = site.submit()
    wait_for((site.folder / "ready").exists)
    run = site.run(handle)
    manifest = run.read_manifest()
    pid = manifest.pid
    manifest.pid_started = started
    run.write_manifest(manifest)
    assert site.status(handle).state == "FAILED"
    site.scheduler.cancel(handle)
    assert pid is not None
    assert start_of(pid) is not None


def test_a_killed_head_is_a_failed_job(site: Site) -> None:
    handle = site.submit()
    wait_for((site.folder / "ready").exists)
    run = site.run(handle)
    manifest = run.read_manifest()
    manifest.state = "READY"
    run.write_manifest(manifest)
    assert site.status(handle).state == "READY"
    assert manifest.pid is not None
    os.killpg(manifest.pid, signal.SIGKILL)
    wait_for(lambda: start_of(manifest.pid or 0) is None)
    assert site.status(handle) == JobStatus(
        state="FAILED", reason="the head of the job was killed, or the machine restarted"
    )


def test_a_job_that_ends_before_it_says_anything_has_its_last_words_as_reason(site: Site) -> None:
    handle = site.submit(FAILING)
    wait_for(lambda: site.status(handle).state == "FAILED")
    assert site.status(handle).reason == "the model is gone\n hint: look for it"


def test_what_ended_stays_as_it_was_noted(site: Site) -> None:
    handle = site.submit(FAILING)
    ended = noted_as_ended(site, handle)
    assert site.status(handle) == ended


def test_a_job_that_ends_while_it_is_asked_for_has_not_failed(site: Site) -> None:
    handle = site.submit(FAILING)
    wait_for(lambda: site.status(handle).state == "FAILED")
    before = site.run(handle).read_manifest()
    before.state = "READY"
    assert status_of(before).state == "FAILED"
    ended = noted_as_ended(site, handle)
    assert status_of(before) == ended


def noted_as_ended(site: Site, handle: str) -> JobStatus:
    """Write the end of a job into its manifest, as its head does last of all; return what it is then."""
    run = site.run(handle)
    manifest = run.read_manifest()
    manifest.state, manifest.reason, manifest.exit_code = "SHUTDOWN", "as asked", 0
    run.write_manifest(manifest)
    return JobStatus(state="SHUTDOWN", reason="as asked", exit_code=0)


def test_a_job_of_another_machine_is_unknown_here(site: Site) -> None:
    handle = site.submit(FAILING)
    wait_for(lambda: site.status(handle).state == "FAILED")
    run = site.run(handle)
    manifest = run.read_manifest()
    manifest.host = "elsewhere"
    manifest.pid_started = None  # as of a job that ended before its process was noted
    run.write_manifest(manifest)
    assert status_of(manifest) == JobStatus(state="UNKNOWN", reason="it runs on elsewhere: ask there")
    with pytest.raises(SiteError, match="runs on elsewhere"):
        site.scheduler.cancel(handle)


def test_three_submissions_at_once(site: Site) -> None:
    with ThreadPoolExecutor(3) as pool:
        handles = list(pool.map(lambda _: site.submit(FAILING), range(3)))
    assert len(set(handles)) == 3
    assert set(site.scheduler.query(handles)) == set(handles)
    assert len({site.run(handle).path for handle in handles}) == 3


def test_handles_are_short_and_plain() -> None:
    handles = {new_handle() for _ in range(1000)}
    assert len(handles) > 990
    assert all(len(handle) == len("local://") + 6 and handle[8:].isalnum() for handle in handles)


def test_unknown_jobs(site: Site) -> None:
    assert site.scheduler.query(["local://nobody"]) == {}
    for verb in (site.scheduler.cancel, site.scheduler.logs):
        with pytest.raises(NotFoundError):
            verb("local://nobody")


def test_a_log_directory_that_cannot_be_written(site: Site) -> None:
    blocked = site.folder / "file"
    blocked.touch()
    with pytest.raises(AegisError, match="cannot be made"):
        site.submit(folder=str(blocked / "logs"))
    assert not index_folder(site.environ).exists()


@pytest.mark.parametrize("fault", ["index", "disk", "bash", "note"])
def test_a_job_that_cannot_be_started_leaves_nothing(
    site: Site, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "index":
        (site.folder / "state").touch()
    elif fault == "disk":
        monkeypatch.setattr("aegis.schedulers.local.write_atomically", _full)
    elif fault == "bash":
        monkeypatch.setenv("PATH", str(site.folder))
        site.environ["PATH"] = str(site.folder)
    else:
        monkeypatch.setattr("aegis.schedulers.local._note_process", _full)
    started: list[int] = []
    killpg = os.killpg

    def kill(pid: int, number: int) -> None:
        started.append(pid)
        killpg(pid, number)

    monkeypatch.setattr(os, "killpg", kill)
    with pytest.raises(AegisError, match="the job cannot be started") as error:
        site.submit()
    assert error.value.hint
    assert list(site.logs.rglob("*")) == []
    assert len(started) == (fault in {"index", "note"})
    assert [start_of(pid) for pid in started] == [None] * len(started)
    if fault != "index":
        assert not list(index_folder(site.environ).parent.rglob("*"))


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("hostile", ["a b", "a'b", "$(touch X)", "a\nb", "; touch X #", "-x", "日本"])
def test_hostile_names(site: Site, hostile: str) -> None:
    handle = site.submit(
        FAILING, models=(hostile,), folder=str(site.logs / f"l{hostile}"), deployment=f"model: {hostile!r}\n"
    )
    wait_for(lambda: site.status(handle).reason.startswith("the model is gone"))
    assert not list(site.folder.rglob("X"))
