"""The six verbs of PBS against real commands, a server and jobs that run."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError, NotFoundError, SiteError
from aegis.runs import find_run
from aegis.schedulers.base import SchedulerUnavailable
from tests.lab.conftest import wait_until

if TYPE_CHECKING:
    from .lab import PbsLab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
WAIT = "sleep 300"
UNTIL_TOLD = "until [ -e go ]; do sleep 0.05; done"
HOSTILE = [
    *("a b", "a'b", 'a"b', "$(touch X)", "; touch X #", "-x", "a:b", "a,b", "\\", "!*?~"),
]
UNSPEAKABLE = ["a\nb", "é🎉"]


def run_dir(pbs: PbsLab, handle: str) -> Path:
    return find_run(handle, pbs.environ).path


def output(pbs: PbsLab, handle: str, suffix: str = "out") -> str:
    place = run_dir(pbs, handle)
    file = place / f"{place.name}.{suffix}"
    return file.read_text() if file.exists() else ""  # the job makes it


def test_a_job_that_ends_well(pbs: PbsLab) -> None:
    pbs.environ["AEGIS_AGENT_POLICY"] = '{"a": 0.2, "b": 0.2}'
    handle = pbs.submit('env; pwd; cat >&2; cat "$AEGIS_SECRETS_FILE"', secrets={"HF_TOKEN": "hf_secret"})
    ended = pbs.wait_for(handle, "SHUTDOWN")
    assert (ended.exit_code, ended.word, ended.nodes) == (0, "F", "127.0.0.2")
    assert ended.submitted is not None
    assert abs(ended.submitted - time.time()) < 60
    assert ended.ended is not None
    assert ended.started is not None
    assert ended.submitted <= ended.started <= ended.ended
    text = output(pbs, handle)
    assert f"AEGIS_JOB={handle}\n" in text
    assert f"AEGIS_RUN_DIR={run_dir(pbs, handle)}\n" in text
    assert 'AEGIS_AGENT_POLICY={"a": 0.2, "b": 0.2}\n' in text
    assert f"{pbs.lab.work}\n" in text
    assert text.endswith('{"HF_TOKEN":"hf_secret"}')
    assert output(pbs, handle, "err") == "model: m\n"
    assert ended.log.endswith(f"/logs/model/.pbs/{handle.removeprefix('pbs://')}.OU")
    assert Path(ended.log).read_text() == ""
    (job,) = pbs.jobs().values()
    assert "hf_secret" not in json.dumps(job)


def test_a_job_that_fails(pbs: PbsLab) -> None:
    ended = pbs.wait_for(pbs.submit("echo no >&2; exit 3"), "FAILED")
    assert (ended.exit_code, ended.reason) == (3, "ended with exit code 3")


def test_what_goes_wrong_before_the_run_directory_is_told_by_pbs(pbs: PbsLab) -> None:
    ended = pbs.wait_for(pbs.submit(work_dir="/nowhere/at/all"), "FAILED")
    assert ended.exit_code == 3
    assert "No such file or directory" in Path(ended.log).read_text()


def test_a_job_waits_with_a_reason_and_runs(pbs: PbsLab) -> None:
    first = pbs.submit(WAIT, resources={"cpus": 208, "nodes": 2, "queue": "workq"})
    second = pbs.submit(WAIT, resources={"nodes": 3, "queue": "prod"})
    waits = pbs.wait_for(second, "PENDING", "free nodes")
    assert waits.reason == "waits for free nodes: Not enough free nodes available (queue small)"
    pbs.scheduler.cancel(first)
    runs = pbs.wait_for(second, "LAUNCHING")
    assert runs.nodes == "127.0.0.2,127.0.0.3,127.0.0.4"
    assert (runs.walltime, runs.restarts) == (600, 0)


def test_what_can_never_run_says_so(pbs: PbsLab) -> None:
    handle = pbs.submit(WAIT, resources={"nodes": 5, "queue": "workq"})
    assert (
        pbs.wait_for(handle, "PENDING", "total").reason == "can never run: Not enough total nodes available"
    )


def test_a_job_is_killed_at_its_walltime(pbs: PbsLab) -> None:
    ended = pbs.wait_for(pbs.submit(WAIT, resources={"walltime": "00:00:01"}), "FAILED")
    assert ended.reason == "killed at its walltime of 00:00:01"
    assert Path(ended.log).read_text().startswith("=>> PBS: job killed: walltime")


def test_a_job_is_cancelled(pbs: PbsLab) -> None:
    handle = pbs.submit(WAIT)
    pbs.wait_for(handle, "LAUNCHING")
    pbs.scheduler.cancel(handle)
    assert pbs.wait_for(handle, "SHUTDOWN").reason == "deleted by its user"
    pbs.scheduler.cancel(handle)
    waits = pbs.submit(WAIT, resources={"queue": "stopped"})
    pbs.wait_for(waits, "PENDING", "Queue not started")
    pbs.scheduler.cancel(waits)
    assert pbs.wait_for(waits, "SHUTDOWN").reason == "deleted while it waited"


def test_a_job_that_ignores_its_end_is_told_to_be_ending(pbs: PbsLab) -> None:
    handle = pbs.submit(f"trap '' TERM; echo on; {WAIT}")
    wait_until(lambda: pbs.status(handle).state == "LAUNCHING" and "on" in output(pbs, handle))
    pbs.scheduler.cancel(handle)
    assert pbs.status(handle).reason == "deleted by its user: it is ending"
    pbs.wait_for(handle, "SHUTDOWN")


def test_a_job_is_held_and_released(pbs: PbsLab) -> None:
    handle = pbs.submit(WAIT, resources={"queue": "workq", "directives": ("-h",)})
    assert pbs.wait_for(handle, "PENDING").reason == "held by its user: qrls releases it"
    pbs.run("qrls", handle.removeprefix("pbs://"))
    pbs.wait_for(handle, "LAUNCHING")


def test_a_node_fails_and_the_job_runs_again(pbs: PbsLab) -> None:
    handle = pbs.submit(f"echo began; {WAIT}", resources={"nodelist": "127.0.0.4"})
    pbs.wait_for(handle, "LAUNCHING")
    wait_until(lambda: "began" in output(pbs, handle))
    pbs.lose("127.0.0.4")
    with pytest.raises(SiteError, match="could not connect to MOM") as error:
        pbs.scheduler.cancel(handle)
    assert "-W force" in str(error.value.hint)
    waits = pbs.wait_for(handle, "PENDING", "a node failed: it waits to run again")
    assert waits.restarts == 1
    pbs.restore("127.0.0.4")
    runs = pbs.wait_for(handle, "LAUNCHING")
    assert runs.restarts == 1
    wait_until(lambda: output(pbs, handle) == "began\nbegan\n")


def test_a_sister_node_fails(pbs: PbsLab) -> None:
    handle = pbs.submit(UNTIL_TOLD, resources={"nodes": 2})
    pbs.wait_for(handle, "LAUNCHING")
    pbs.lose("127.0.0.3")
    assert pbs.status(handle).state == "LAUNCHING"
    (pbs.lab.work / "go").touch()
    assert pbs.wait_for(handle, "FAILED").reason == "a node of it was lost"


def test_the_server_goes_and_comes_back(pbs: PbsLab) -> None:
    handle = pbs.submit(f"{UNTIL_TOLD}; exit 3")
    pbs.wait_for(handle, "LAUNCHING")
    pbs.down()
    (pbs.lab.work / "go").touch()
    for question in (
        lambda: pbs.status(handle),
        lambda: pbs.scheduler.cancel(handle),
        lambda: pbs.submit(WAIT, secrets={"HF_TOKEN": "x"}),
    ):
        with pytest.raises(SchedulerUnavailable, match="Connection refused"):
            question()
    assert not list((pbs.lab.path / "logs" / ".secrets").iterdir())
    pbs.up()
    assert pbs.wait_for(handle, "FAILED").exit_code == 3
    pbs.unreachable()
    with pytest.raises(SchedulerUnavailable, match="No route to host"):
        pbs.status(handle)


def test_fifty_jobs_and_strangers_in_one_question(pbs: PbsLab) -> None:
    ids = [pbs.qsub("true", "-h", "-N", f"job{number}") for number in range(50)]
    count = pbs.count("qstat")
    found = pbs.scheduler.query([*(f"pbs://{each}" for each in ids), "pbs://999999", "pbs://1.elsewhere"])
    assert count() == 1
    assert [status.name for status in found.values()] == [*(f"job{number}" for number in range(50)), ""]
    assert found["pbs://1.elsewhere"].state == "UNKNOWN"
    assert "pbs://999999" not in found


def test_three_submissions_at_once(pbs: PbsLab) -> None:
    wanted = pbs.request("exit 0")
    script = pbs.scheduler.render(wanted)
    with ThreadPoolExecutor(3) as pool:
        handles = [
            each.handle for each in pool.map(lambda _: pbs.scheduler.submit(wanted, script, {}), range(3))
        ]
    assert len(set(handles)) == 3
    assert len({run_dir(pbs, handle) for handle in handles}) == 3
    for handle in handles:
        pbs.wait_for(handle, "SHUTDOWN")


def test_a_job_that_every_destination_rejects(pbs: PbsLab) -> None:
    handle = pbs.submit(WAIT, resources={"queue": "prod", "walltime": "10:00:00"})
    status = pbs.wait_for(handle, "FAILED")
    assert "rejected by every destination of the routing queue prod" in status.reason
    with pytest.raises(NotFoundError):
        pbs.scheduler.cancel(handle)


def test_a_site_without_history(pbs: PbsLab) -> None:
    pbs.down()
    pbs.up(history=False)
    handle = pbs.submit(WAIT)
    pbs.wait_for(handle, "LAUNCHING")
    run = find_run(handle, pbs.environ)
    manifest = run.read_manifest()
    manifest.state, manifest.pid = "READY", 1
    run.write_manifest(manifest)
    pbs.scheduler.cancel(handle)
    status = pbs.wait_for(handle, "FAILED")
    assert status.reason == "PBS does not know it any more, and it did not say how it ended"


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"queue": "nosuch"}, "Unknown queue"),
        ({"queue": "disabled"}, "Queue is not enabled"),
        ({"queue": "small"}, "Access to queue is denied"),
        ({"walltime": "02:00:00"}, "Job violates queue and/or server resource limits"),
        ({"nodes": 3}, "Job violates queue and/or server resource limits"),
        ({"device_type": "gpu_model=a100", "device_option": "ngpus"}, "Unknown resource: gpu_model"),
        ({"directives": ("-l bogus=1",)}, "Unknown resource Resource_List.bogus"),
    ],
)
def test_a_refusal(pbs: PbsLab, resources: dict[str, object], said: str) -> None:
    with pytest.raises(SiteError, match=f"PBS does not take the job: {said}") as error:
        pbs.submit(WAIT, resources=resources)
    assert error.value.hint
    assert not list((pbs.lab.path / "logs" / "model").glob("model*"))


def test_each_component_gets_its_own_nodes(pbs: PbsLab) -> None:
    handle = pbs.submit(
        'cat "$PBS_NODEFILE"; echo "$AEGIS_JOB"', count=2, resources={"nodes": 2, "queue": "workq"}
    )
    pbs.wait_for(handle, "SHUTDOWN")
    assert output(pbs, f"{handle}+0") == f"127.0.0.2\n127.0.0.3\n{handle}+0\n"
    assert output(pbs, f"{handle}+1") == f"127.0.0.4\n127.0.0.5\n{handle}+1\n"
    assert pbs.status(f"{handle}+1").state == "SHUTDOWN"


def test_the_first_bad_code_is_that_of_the_job(pbs: PbsLab) -> None:
    handle = pbs.submit('exit "${AEGIS_JOB##*+}"', count=2)
    assert pbs.wait_for(handle, "FAILED").exit_code == 1


def test_an_array_that_somebody_else_submitted(pbs: PbsLab) -> None:
    job_id = pbs.qsub("sleep 300", "-J", "0-1")
    status = pbs.wait_for(f"pbs://{job_id}", "LAUNCHING", "Running:2")
    assert status.reason == "an array of jobs: Queued:0 Running:2 Exiting:0 Expired:0"
    assert pbs.status(f"pbs://{job_id.replace('[]', '[1]')}").state == "LAUNCHING"


@pytest.mark.parametrize("hostile", [*HOSTILE, *UNSPEAKABLE])
def test_hostile_names(pbs: PbsLab, hostile: str) -> None:
    work = pbs.lab.work / f"w{hostile}".replace("/", "")
    work.mkdir()
    handle = pbs.submit("pwd", name=hostile, work_dir=str(work))
    pbs.wait_for(handle, "SHUTDOWN")
    assert output(pbs, handle) == f"{work}\n"
    if hostile in HOSTILE:
        handle = pbs.submit("pwd", resources={"account": hostile})
        assert pbs.jobs()[handle.removeprefix("pbs://")]["Account_Name"] == hostile
    else:
        with pytest.raises(ConfigError, match="PBS cannot be told the account"):
            pbs.submit("pwd", resources={"account": hostile})
    with pytest.raises((SiteError, ConfigError)):
        pbs.submit("pwd", resources={"queue": hostile})
    assert not list(pbs.lab.path.rglob("X"))
