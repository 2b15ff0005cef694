"""The next job of a service is the same as this one, whoever makes it, and ends with the service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.errors import ConfigError
from aegis.fleet.endpoints import EndpointsFile
from aegis.fleet.inside import Walltime
from aegis.fleet.jobs import Jobs
from aegis.fleet.renewal import Renewal
from aegis.fleet.request import Place, job_request
from aegis.fleet.submit import prepare, submit
from aegis.fleet.successors import Own, refuse_by_hand, renewal_of, submit_successor, terms_of
from aegis.runs import Manifest, RunDir, register
from aegis.schedulers.base import After
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import Resolved, resolve
from aegis.spec.service import parse_until

if TYPE_CHECKING:
    from aegis.schedulers.base import JobRequest

SITE = Site((BUILT_IN,), "login1", lambda command: command == "sbatch")
PLACE = Place("/home/me", "/home/me/project", "/opt/aegis/bin/python")


def resolved(**flags: Any) -> Resolved:
    usual = {
        "model": "org/m-1B",
        "engine": "sim",
        "account": "a",
        "platform": "generic-slurm",
        "walltime": "12:00:00",
        "keep_alive": True,
        "work_dir": "runs",
        "aegis_env": "env",
    }
    return resolve(None, {**usual, **flags}, {}, SITE)


def again(request: JobRequest, after: After) -> JobRequest:
    """Return what the job makes of itself: it reads its deployment in its working directory."""
    text = request.components[0].deployment
    file = Path("deployment.yaml")
    file.write_text(text)
    inside = Place("/home/me", request.work_dir, "/another/python")
    return job_request([resolve(file, {}, {}, SITE)], inside, request.name, after)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_successor_is_the_same_job(here: Path) -> None:
    del here
    first = job_request([resolved(until="7-00:00:00")], PLACE)
    after = After(job="slurm://1", seconds=36000, time=time.time() + 36000)
    second = again(first, after)
    assert msgspec.structs.replace(second, after=None) == first
    assert first.service == "m-1B"
    assert again(second, after) == second


def test_the_last_job_is_as_long_as_the_service_has_left(here: Path) -> None:
    del here
    now = time.time()
    request = job_request(
        [resolved(until="20:00:00", overlap="02:00:00")],
        PLACE,
        None,
        After(job="slurm://1", time=now + 36000),
    )
    text = request.components[0].deployment
    assert request.components[0].resources.walltime in {"09:59:59", "10:00:00"}
    assert "overlap" not in text
    (until,) = (line.partition(": ")[2].strip('"') for line in text.splitlines() if line.startswith("until"))
    assert abs(parse_until(until, 0.0) - now - 72000) < 60


def test_what_cannot_be_kept_alive_is_refused(here: Path) -> None:
    del here
    with pytest.raises(ConfigError, match="the service ends before the job can serve"):
        job_request([resolved(until="2020-01-01T00:00")], PLACE)
    with pytest.raises(ConfigError, match="several components"):
        job_request([resolved(), resolved()], PLACE)
    with pytest.raises(ConfigError, match="not for a launch by hand"):
        refuse_by_hand(resolved().deployment, {})
    refuse_by_hand(resolved(keep_alive=None).deployment, {})


def test_a_job_knows_its_terms_and_its_tries(tmp_path: Path) -> None:
    manifest = Manifest(
        job="local://k3f9ab", name="x", models=["m"], run_dir=str(tmp_path), ready=time.time()
    )
    own = Own(
        resolved(overlap="01:00:00"),
        RunDir.at(tmp_path),
        manifest,
        Walltime(43200, {}, local=True),
        {},
        {"AEGIS_FAILED_STARTS": "2", "AEGIS_JOB": "x", "HOME": str(tmp_path)},
        {},
    )
    assert own.clean == {"HOME": str(tmp_path)}
    terms = terms_of(own)
    assert (terms.walltime, terms.lead, terms.until) == (43200, 3600, None)
    made = renewal_of(own)
    assert isinstance(made, Renewal)
    assert made.failed_starts == 2
    assert made.foresee() == ""


def test_a_node_that_cannot_submit_says_so_in_time(tmp_path: Path) -> None:
    manifest = Manifest(job="slurm://7", name="x", models=["m"], run_dir=str(tmp_path / "x.7"))
    environ = {"PATH": "/nowhere", "HOME": str(tmp_path), "SLURM_JOB_START_TIME": str(time.time())}
    walltime = Walltime(43200, environ, local=False)
    made = renewal_of(Own(resolved(), RunDir.at(tmp_path), manifest, walltime, {}, environ, {}))
    assert made
    said = made.foresee()
    assert "there is no sbatch on" in said
    assert said.endswith("submit it on a login node: aegis submit --successor-of slurm://7")
    made.close()
    made.begin(terms_of(Own(resolved(), RunDir.at(tmp_path), manifest, walltime, {}, environ, {})))
    made.step(time.time())
    assert made.problem == said


def known(tmp_path: Path, **facts: Any) -> Jobs:
    """Return jobs of which one is there: a service that this very process serves."""
    environ = {"HOME": str(tmp_path), "PATH": "/nowhere", "AEGIS_STATE_DIR": str(tmp_path / "state")}
    run = RunDir.make(tmp_path / "m" / "m.k3f9ab")
    values = {"service": "chat", "ready": time.time(), "state": "READY", **facts}
    run.write_manifest(Manifest(job="slurm://7", name="m", models=["m"], run_dir=str(run.path), **values))
    register("slurm://7", run, environ)
    return Jobs(environ)


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    jobs = known(tmp_path)
    request = [resolved(platform="local", service="chat", work_dir=None, aegis_env=None)]
    with pytest.raises(ConfigError, match="the service `chat` is there already: slurm://7"):
        submit(prepare(request, jobs, warn=print), jobs)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"ready": None, "state": "LAUNCHING"}, "only a job that serves"),
        ({"deployment": {"models": [{"model": "m"}]}}, "not submitted with --keep-alive"),
    ],
)
def test_no_successor_by_hand_where_there_is_none_to_make(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        submit_successor(known(tmp_path, **facts), "chat")


def test_a_file_that_another_job_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.txt"
    path.write_text("a:1\n")
    file = EndpointsFile(path, is_ours=False)
    assert file.update([])  # noticed, as the first thing that is known
    assert not file.update([])
    file.remove()
    assert path.read_text() == "a:1\n"
    assert file.is_replaced
    file.is_ours = True
    assert file.update([])
    assert path.read_text() == ""
    assert not file.is_replaced
