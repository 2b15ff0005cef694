"""Submission: two jobs never keep one endpoints file; simulated servers ask for no devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import ConfigError
from aegis.fleet.request import Place, job_request
from aegis.fleet.submit import Prepared, submit
from aegis.schedulers.base import JobStatus, Resources, Submission
from aegis.spec.resolve import resolve
from tests.fleet.jobs_site import RUNNING, Fake, Site
from tests.schedulers.job_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aegis.schedulers.base import JobRequest

ONE = "slurm://1"
ENDED = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)
WAITING = JobStatus(state="PENDING", reason="waits for free nodes")


class Willing(Fake):
    """A scheduler that takes every job."""

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        return Submission("slurm://2")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.slurm = Willing()
    return made


def submitted(site: Site, *files: str) -> str:
    job = request(*(component(endpoints_file=file) for file in files))
    return submit(Prepared(job, "script", site.slurm, {}), site.jobs()).handle


@pytest.mark.parametrize(("status", "word"), [(WAITING, "PENDING"), (RUNNING, "LAUNCHING")])
def test_the_endpoints_file_of_a_job_that_waits_or_runs_is_refused(
    site: Site, status: JobStatus, word: str
) -> None:
    file = site.job(ONE, status).endpoints_file or ""
    (site.folder / "link").symlink_to(file)
    for name in (file, str(site.folder / "link")):
        with pytest.raises(ConfigError, match=f"{file} is the endpoints file of {ONE}, which is {word}"):
            submitted(site, "/other.txt", name)


def test_a_silent_scheduler_s_job_counts_as_live(site: Site) -> None:
    file = site.job(ONE, RUNNING, state="READY").endpoints_file or ""
    site.slurm.down = "no answer"
    with pytest.raises(ConfigError, match="which is UNKNOWN"):
        submitted(site, file)


def test_the_file_of_a_job_that_has_ended_is_free(site: Site) -> None:
    file = site.job(ONE, ENDED, state="READY").endpoints_file or ""
    assert submitted(site, file) == "slurm://2"


def test_nobody_is_asked_where_no_file_is_shared(site: Site) -> None:
    site.job(ONE, RUNNING)
    assert submitted(site, "/mine.txt", "{run_dir}/endpoints.txt") == "slurm://2"
    assert site.slurm.asked == []


def asked(platform: str = "generic-slurm", **keys: Any) -> Resources:
    resolved = resolve(None, {"model": "m", "platform": platform, "account": "a", **keys}, {})
    (only,) = job_request([resolved], Place("/home/me", "/home/me", "/python")).components
    return only.resources


def test_simulated_servers_ask_for_no_devices() -> None:
    for platform in ("generic-slurm", "killarney", "polaris"):
        simulated = asked(platform, engine="sim", tensor_parallel_size=4, filesystems="home", queue="debug")
        assert (simulated.nodes, simulated.devices, simulated.cpus) == (1, None, None)
    assert asked("killarney", engine="sim", gpus_per_node=2).devices == 2
    assert asked("killarney", engine="vllm").devices == 1
