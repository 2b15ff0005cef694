"""The life of jobs on a real Slurm, as its user sees it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from aegis.errors import NotFoundError, SiteError
from aegis.schedulers.base import JobLogs
from aegis.schedulers.transport import Done
from tests.lab.conftest import wait_until

from .lab import SLEEP, Login, SlurmLab, User

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


def test_aegis_runs_for_a_plain_user_on_the_login_host(alice: User) -> None:
    assert alice.aegis("--version").out.startswith("aegis, version")
    assert alice.slurm.describe().detail.startswith("Slurm 2")


def test_a_job_runs_and_is_cancelled(alice: User) -> None:
    submitted = time.time()
    handle = alice.submit().handle
    running = alice.wait_for(handle, "LAUNCHING")
    assert (running.word, running.reason, running.restarts) == ("RUNNING", "", 0)
    assert (running.name, running.walltime, running.nodes) == ("test", 600, "node1")
    assert running.submitted is not None
    assert running.started is not None
    assert abs(running.submitted - submitted) < 5
    assert running.ended is None
    alice.wait_begun(handle)
    alice.slurm.cancel(handle)
    ended = alice.wait_for(handle, "SHUTDOWN", "cancelled")
    assert ended.ended is not None
    alice.slurm.cancel(handle)  # nothing is left to end


def test_accounting_knows_who_cancelled(alice: User, slurm: SlurmLab) -> None:
    if not slurm.accounting:
        pytest.skip("there is no accounting here")
    own, taken, waiting = (alice.submit().handle, alice.submit().handle, alice.submit(name="w").handle)
    for handle in (own, taken):
        alice.wait_begun(handle)
    alice.slurm.cancel(own)
    slurm.run("scancel", taken.partition("://")[2])
    alice.wait_for(own, "SHUTDOWN", "cancelled by its user")
    alice.wait_for(taken, "FAILED", "cancelled by user 0 (root)")
    alice.slurm.cancel(waiting)


def test_what_a_submission_leaves_behind(alice: User) -> None:
    job = alice.component(f'echo "$AEGIS_JOB $AEGIS_RUN_DIR"; {SLEEP}')
    handle = alice.submit(job).handle
    number = handle.removeprefix("slurm://")
    folder = alice.logs / "model" / f"model-7B.{number}"
    alice.wait_begun(handle)
    assert (folder / f"{folder.name}.out").read_text() == f"{handle} {folder}\n"
    manifest = json.loads((folder / f"{folder.name}.json").read_text())
    assert (manifest["job"], manifest["state"], manifest["walltime"]) == (handle, "PENDING", 600)
    assert (alice.home / "state" / "aegis" / "jobs" / f"slurm:{number}").readlink() == folder
    assert (folder / f"{folder.name}.sh").read_text().startswith("#!/bin/bash -l\n#SBATCH --job-name=test\n")
    assert alice.slurm.logs(handle) == JobLogs(f"{folder}/{folder.name}.out", f"{folder}/{folder.name}.err")
    status = alice.status(handle)
    assert status is not None
    assert status.log == f"{alice.logs}/model/.slurm/model-7B.{number}.log"
    assert "began" not in alice.run("cat", status.log).out


def test_secrets_reach_the_job_and_nobody_else(alice: User, bob: User, slurm: SlurmLab) -> None:
    code = 'cat "$AEGIS_SECRETS_FILE" >secrets; env >variables; touch done'
    handle = alice.submit(alice.component(code), HF_TOKEN="hf_secret").handle
    alice.wait_for(handle, "SHUTDOWN")
    assert json.loads((alice.work / "secrets").read_text()) == {"HF_TOKEN": "hf_secret"}
    assert "hf_secret" not in (alice.work / "variables").read_text()
    assert "hf_secret" not in str(alice.transport.asked)
    (file,) = (alice.logs / ".secrets").iterdir()
    assert bob.run("cat", file, code=None).code != 0
    assert "hf_secret" not in slurm.run("scontrol", "show", "job", handle.removeprefix("slurm://")).out


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        ("exit 0", "SHUTDOWN", ""),
        ("exit 3", "FAILED", "ended with exit code 3"),
        ("kill -9 $$", "FAILED", "killed by signal 9 (SIGKILL)"),
        ("no-such-command", "FAILED", "ended with exit code 127: a command was not found"),
    ],
)
@pytest.mark.parametrize("gone", [False, True], ids=["in the queue", "in accounting alone"])
def test_how_a_job_ends(alice: User, code: str, state: str, reason: str, gone: bool) -> None:
    handle = alice.submit(alice.component(code)).handle
    alice.wait_for(handle, state, reason)
    if gone:
        if not alice.lab.accounting:
            pytest.skip("there is no accounting here")
        alice.slurm.transport = Forgetful(alice.lab, alice.name, alice.home)
        wait_until(lambda: (known := alice.status(handle)) and known.name == "test", "accounting knows it")
    ended = alice.wait_for(handle, state, reason)
    assert ended.reason == reason
    assert (ended.exit_code == 3) == (code == "exit 3")
    assert (ended.signal == 9) == (code == "kill -9 $$")


def test_a_shell_that_reports_a_signal(alice: User) -> None:
    handle = alice.submit(alice.component("exit 137")).handle  # sacct would say 9
    ended = alice.wait_for(handle, "FAILED")
    assert ended.reason == "ended with exit code 137, which is signal 9 (SIGKILL)"


class Forgetful(Login):
    """A Slurm whose controller remembers no job that has ended."""

    def run(self, argv: Sequence[str], **how: Any) -> Done:
        return Done(0, "", "") if argv[0] == "squeue" else super().run(argv, **how)


def test_an_output_file_that_cannot_be_opened_is_told(alice: User) -> None:
    handle = alice.submit(alice.component(directives=("--output=/nonexistent/x.%j.log",))).handle
    status = alice.wait_for(handle, "FAILED", "its output file could not be opened")
    assert status.reason.endswith(f": /nonexistent/x.{handle.removeprefix('slurm://')}.log")


def test_why_a_job_waits(alice: User) -> None:
    whole = alice.submit(alice.component(nodes=4, cpus=32)).handle
    alice.wait_for(whole, "LAUNCHING")
    cases = {
        "waits for free nodes (Resources)": alice.component(cpus=32),
        "held by its user": alice.component(directives=("--hold",)),
        "waits for its start time (BeginTime)": alice.component(directives=("--begin=now+1hour",)),
        "waits for another job (Dependency)": alice.component(
            directives=(f"--dependency=afterok:{whole.removeprefix('slurm://')}",)
        ),
        "time limit: it will never start (PartitionTimeLimit)": alice.component(walltime="25:00:00"),
        "it will never start (Partition": alice.component(nodes=40),
    }
    handles = {words: alice.submit(asked).handle for words, asked in cases.items()}
    for words, handle in handles.items():
        status = alice.wait_for(handle, "PENDING", words)
        assert (status.started, status.nodes) == (None, "")


@pytest.mark.parametrize(
    ("resources", "said", "hint"),
    [
        ({"queue": "nope"}, "invalid partition specified: nope", "sinfo -s"),
        ({"account": "nope"}, "Invalid account or account/partition combination", "--account"),
        ({"qos": "nope"}, "Invalid qos specification", "--qos"),
        ({"devices": 9, "device_option": "gres"}, "node configuration is not available", "sinfo -o"),
        ({"devices": 1, "device_option": "gres", "device_type": "h100"}, "not available", "sinfo -o"),
        ({"memory": "999999G"}, "Memory specification can not be satisfied", "--mem-per-node"),
        ({"constraint": "nope"}, "Invalid feature specification", "--constraint"),
        ({"nodelist": "nope"}, "Invalid node name specified", "--nodelist"),
        ({"directives": ("--bogus",)}, "unrecognized option '--bogus'", "directives"),
    ],
)
def test_refusals(alice: User, resources: dict[str, Any], said: str, hint: str) -> None:
    if not alice.lab.accounting and {"account", "qos"} & set(resources):
        pytest.skip("there is no accounting here")
    with pytest.raises(SiteError, match="Slurm does not take the job: ") as error:
        alice.submit(alice.component(**resources), HF_TOKEN="x")
    assert said in error.value.message
    assert hint in (error.value.hint or "")
    assert list((alice.logs / ".secrets").iterdir()) == []


def test_unknown_and_foreign_jobs(alice: User, bob: User) -> None:
    for handle in ("slurm://999999", "slurm://999999+1", "slurm://1; touch X", "slurm://-1", "slurm://"):
        assert alice.status(handle) is None
        with pytest.raises(NotFoundError):
            alice.slurm.cancel(handle)
        with pytest.raises(NotFoundError):
            alice.slurm.logs(handle)
    assert not list(alice.home.rglob("X"))
    handle = alice.submit().handle
    alice.wait_begun(handle)
    with pytest.raises(SiteError, match="Access/permission denied"):
        bob.slurm.cancel(handle)


def test_variables_of_the_user_change_neither_jobs_nor_answers(alice: User) -> None:
    settings = dict.fromkeys(("SBATCH_PARTITION", "SBATCH_JOB_NAME", "SBATCH_QOS", "SBATCH_GRES"), "nope") | {
        "SBATCH_ARRAY_INX": "0-3",
        "SBATCH_EXPORT": "NONE",
        "SBATCH_WAIT": "1",
        "SLURM_MEM_PER_CPU": "9",
        "SLURM_TIME_FORMAT": "%H",
        "SQUEUE_NAMES": "x",
        "SQUEUE_PARTITION": "a100",
        "SQUEUE_STATES": "CANCELLED",
        "SQUEUE_USERS": "bob",
        "SCANCEL_PARTITION": "a100",
        "SCANCEL_STATE": "PENDING",
        "HF_TOKEN": "hf_secret",
    }
    alice.transport.variables.update(settings)
    alice.environ.update(settings)
    code = f"env >variables; {SLEEP}"
    handle = alice.submit(alice.component(code, devices=1, device_option="gres", qos="normal")).handle
    assert alice.wait_for(handle, "LAUNCHING").name == "test"
    alice.wait_begun(handle)
    variables = (alice.work / "variables").read_text()
    assert "hf_secret" not in variables
    assert "SLURM_MEM_PER_CPU" not in variables
    assert "SLURM_JOB_PARTITION=all" in variables
    alice.slurm.cancel(handle)
    alice.wait_for(handle, "SHUTDOWN")


@pytest.mark.parametrize(
    "hostile",
    ["a b", "a'b", 'a"b', "$(touch X)", "`touch X`", "; touch X #", "\\", "é🎉", "-x", "%j%%", "a|b,c"],
)
def test_hostile_names_in_every_field(alice: User, hostile: str) -> None:
    if "\\" not in hostile:
        alice.logs = alice.home / f"logs {hostile}"
    alice.work = alice.home / f"work {hostile}"
    alice.run("mkdir", alice.work, cwd=alice.home)
    job = alice.component(f'echo "$PWD"; {SLEEP}', model=f"org/{hostile}")
    handle = alice.submit(job, name=hostile).handle
    status = alice.wait_for(handle, "LAUNCHING")
    assert status.name == hostile
    alice.wait_begun(handle)
    assert alice.run("cat", alice.slurm.logs(handle).out, cwd=alice.home).out == f"{alice.work}\n"
    assert status.log.startswith(str(alice.logs))
    assert alice.run("cat", status.log, cwd=alice.home).code == 0
    for field in ("account", "qos", "queue", "nodelist", "exclude", "constraint", "memory", "device_type"):
        asked: dict[str, Any] = {"devices": 1, "device_option": "gres", field: hostile}
        refused = alice.component(**asked)
        with pytest.raises(SiteError):
            alice.submit(refused)
    assert not list(alice.home.rglob("X"))


def test_fifty_jobs_are_one_question(alice: User) -> None:
    held = alice.component(directives=("--hold",))
    handles = [alice.submit(held).handle for _ in range(50)]
    alice.transport.asked.clear()
    found = alice.slurm.query(handles)
    assert set(found) == set(handles)
    assert {status.state for status in found.values()} == {"PENDING"}
    assert [argv[0] for argv in alice.transport.asked] == ["squeue"]
    alice.run("scancel", "--user=alice")
    wait_until(lambda: all(s.state == "SHUTDOWN" for s in alice.slurm.query(handles).values()))
    alice.transport.asked.clear()
    assert set(alice.slurm.query(handles)) == set(handles)
    assert [argv[0] for argv in alice.transport.asked] == ["squeue", "sacct"]


def test_three_submissions_in_the_same_second(alice: User) -> None:
    with ThreadPoolExecutor(3) as pool:
        handles = [done.handle for done in pool.map(lambda _: alice.submit(), range(3))]
    assert len(set(handles)) == 3
    for handle in handles:
        alice.wait_begun(handle)
    assert len({alice.slurm.logs(handle).out for handle in handles}) == 3


def test_a_requeued_job_is_the_same_job_again(alice: User, slurm: SlurmLab) -> None:
    handle = alice.submit(alice.component(f"echo run; {SLEEP}")).handle
    number = handle.removeprefix("slurm://")
    began = alice.work / f"began.{number}"
    alice.wait_begun(handle)
    began.unlink()
    slurm.run("scontrol", "requeue", number)
    waiting = alice.wait_for(handle, "PENDING")
    assert waiting.restarts == 1
    alice.wait_for(handle, "PENDING", "waits for its start time (BeginTime)")
    slurm.begin(number, "now+3")  # its node forgets the first run
    assert alice.wait_for(handle, "LAUNCHING").restarts == 1
    alice.wait_begun(handle)
    assert alice.run("cat", alice.slurm.logs(handle).out).out == "run\nrun\n"


def test_without_accounting_the_controller_tells_the_end(slurm_lab: SlurmLab) -> None:
    del slurm_lab  # where that one can be started, another can

    with SlurmLab("a40:1:a40:1", "MinJobAge=2", accounting=False) as lab:
        alice = User(lab, "alice", lab.path / "home" / "alice" / "1")
        handle = alice.submit(alice.component("exit 3")).handle
        ended = alice.wait_for(handle, "FAILED")
        assert (ended.reason, ended.exit_code) == ("ended with exit code 3", 3)
        wait_until(lambda: alice.status(handle) is None, "the controller has forgotten it", 120)
