"""The six verbs of Slurm against scripted answers; the files are real."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.errors import AegisError, ConfigError, NotFoundError, SiteError
from aegis.schedulers.base import JobLogs, SchedulerUnavailable, Submission
from aegis.schedulers.slurm import Slurm
from aegis.schedulers.slurm.queue import SACCT, SEPARATOR, SQUEUE
from aegis.schedulers.slurm.refusals import trouble
from aegis.schedulers.transport import TIMEOUT, Done, Here

from .job_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.schedulers.base import JobRequest

REFUSALS = Path(__file__).parents[1] / "fixtures" / "slurm" / "refusals"
MISSING = SiteError("it cannot be run: No such file or directory")
SILENT = SchedulerUnavailable("it did not answer within 60 s")


class Site(Here):
    """A machine whose Slurm says what a test tells it; everything else really runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__({"PATH": "/usr/bin:/bin", "HOME": str(folder)})
        self.folder = folder
        self.answers: dict[str, Done | Exception | list[Done | Exception]] = {}
        self.asked: list[list[str]] = []
        self.texts: list[str] = []
        self.environs: list[Mapping[str, str]] = []
        self.repeatable: list[bool] = []
        self.slurm = Slurm(self, {"HOME": str(folder)})

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Done:
        answer = self.answers.get(argv[0])
        if answer is None:
            return super().run(argv, text=text, environ=environ, timeout=timeout)
        assert timeout <= 60
        self.asked.append(list(argv))
        self.texts.append(text)
        self.environs.append(environ or {})
        self.repeatable.append(repeatable)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self, *models: str) -> JobRequest:
        parts = [component(model, folder=f"{self.folder}/logs/f") for model in models or ("org/model",)]
        return request(*parts, work_dir=str(self.folder))

    def submit(self, *models: str, **secrets: str) -> Submission:
        job = self.job(*models)
        return self.slurm.submit(job, self.slurm.render(job), secrets)

    @property
    def programs(self) -> list[str]:
        return [argv[0] for argv in self.asked]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def good(out: str = "", err: str = "") -> Done:
    return Done(0, out, err)


def listed(fields: Mapping[str, str], *jobs: dict[str, str]) -> Done:
    """Return what squeue or sacct says of some jobs."""
    lines = [SEPARATOR.join({"raw": job["id"], **job}.get(field, "") for field in fields) for job in jobs]
    return good("".join(f"{line}\n" for line in lines))


def recorded(name: str) -> Done:
    code = int((REFUSALS / f"{name}.cmd").read_text().partition("# rc=")[2].split()[0])
    return Done(code, "", (REFUSALS / f"{name}.err").read_text())


# ---------------------------------------------------------------------------------------------- describe


@pytest.mark.parametrize(
    ("answer", "available", "words"),
    [
        (good("slurm-wlm 22.05.8\n"), True, "Slurm 22.05.8 on this machine"),
        (good("slurm 25.05.1\n"), True, "Slurm 25.05.1 on this machine"),
        (MISSING, False, "it cannot be run"),
        (SILENT, False, "did not answer"),
    ],
)
def test_what_is_here(site: Site, answer: Done | Exception, available: bool, words: str) -> None:
    site.answers["sbatch"] = answer
    info = site.slurm.describe()
    assert (info.name, info.available) == ("slurm", available)
    assert words in info.detail


# ---------------------------------------------------------------------------------------------- submit


def test_the_script_goes_in_on_standard_input_and_all_is_recorded(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    assert site.submit() == Submission("slurm://17")
    assert site.asked == [["sbatch", "--parsable"]]
    assert site.repeatable == [False]
    folder = site.folder / "logs" / "f" / "model.17"
    script = folder / "model.17.sh"
    assert script.read_text() == site.texts[0] == site.slurm.render(site.job())
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    manifest = json.loads((folder / "model.17.json").read_text())
    assert (manifest["job"], manifest["models"], manifest["state"]) == (
        "slurm://17",
        ["org/model"],
        "PENDING",
    )
    assert manifest["secrets_file"] is None
    index = site.folder / ".local" / "state" / "aegis" / "jobs"
    assert [(link.name, link.readlink()) for link in index.iterdir()] == [("slurm:17", folder)]
    assert (site.folder / "logs" / "f" / ".slurm").is_dir()  # or Slurm could not write its output
    assert site.slurm.logs("slurm://17") == JobLogs(f"{folder}/model.17.out", f"{folder}/model.17.err")


def test_a_dry_run_leaves_nothing(site: Site) -> None:
    site.slurm.render(site.job())
    assert list(site.folder.iterdir()) == []


def test_each_component_is_recorded(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    assert site.submit("org/one", "org/two").handle == "slurm://17"
    for number, name in enumerate(("one", "two")):
        folder = site.folder / "logs" / "f" / f"{name}.17+{number}"
        manifest = json.loads((folder / f"{folder.name}.json").read_text())
        assert (manifest["job"], manifest["models"]) == (f"slurm://17+{number}", [f"org/{name}"])
        assert (folder / f"{folder.name}.sh").read_text() == site.texts[0]
        assert site.slurm.logs(f"slurm://17+{number}").out == f"{folder}/{folder.name}.out"


def test_what_a_faster_job_has_written_stays(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    folder = site.folder / "logs" / "f" / "model.17"
    folder.mkdir(parents=True)
    (folder / "model.17.json").write_text("its own")
    assert site.submit().warnings == ()
    assert (folder / "model.17.json").read_text() == "its own"
    assert (folder / "model.17.sh").exists()


def test_warnings_are_shown_and_do_not_orphan_the_job(site: Site) -> None:
    site.answers["sbatch"] = good(
        "17;lab\n", "sbatch: warning: can't honor --ntasks-per-node\nsbatch: Note: x\n"
    )
    submission = site.submit()
    assert submission.handle == "slurm://17"
    assert submission.warnings == ("sbatch: warning: can't honor --ntasks-per-node", "sbatch: Note: x")


def test_a_job_that_cannot_be_recorded_is_not_orphaned(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    (site.folder / ".local").touch()
    submission = site.submit()
    assert submission.handle == "slurm://17"
    assert "cannot be recorded" in submission.warnings[0]
    site.answers["bash"] = SILENT
    assert "the job is submitted, but cannot be recorded" in site.submit().warnings[0]


def test_secrets_are_in_a_private_file_alone(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    site.submit(HF_TOKEN="hf_secret")
    (file,) = (site.folder / "logs" / ".secrets").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text()) == {"HF_TOKEN": "hf_secret"}
    assert site.environs[0]["AEGIS_SECRETS_FILE"] == str(file)
    assert site.environs[0]["HF_TOKEN"] == site.environs[0]["VLLM_API_KEY"] == ""  # not to be stored by Slurm
    manifest = json.loads((site.folder / "logs" / "f" / "model.17" / "model.17.json").read_text())
    assert manifest["secrets_file"] == str(file)
    others = [each for each in site.folder.rglob("*") if each.is_file() and each != file]
    assert not [each for each in others if "hf_secret" in each.read_text()]


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("err_partition", "invalid partition specified: nope; Invalid partition name specified", "--queue"),
        ("err_account", "Invalid account or account/partition combination specified", "--account"),
        ("err_qos", "Invalid qos specification", "--qos"),
        ("err_gres", "Requested node configuration is not available", "sinfo -o"),
        ("err_gres_type", "Requested node configuration is not available", "sinfo -o"),
        ("err_mem", "Memory specification can not be satisfied", "--mem-per-node"),
        ("err_constraint", "Invalid feature specification", "--constraint"),
        ("err_nodes_enforced", "More processors requested than permitted", "sinfo -s"),
        (
            "err_time_enforced",
            "Requested time limit is invalid (missing or exceeds some limit)",
            "--walltime",
        ),
        ("err_opt", "unrecognized option '--bogus'", "directives"),
    ],
)
def test_a_refusal_is_told_in_its_words_with_what_to_do(site: Site, name: str, said: str, hint: str) -> None:
    site.answers["sbatch"] = recorded(name)
    with pytest.raises(SiteError) as error:
        site.submit(HF_TOKEN="x")
    assert error.value.message.startswith(f"Slurm does not take the job: {said}")
    assert error.value.exit_code == 3
    assert hint in str(error.value.hint)
    assert list((site.folder / "logs" / ".secrets").iterdir()) == []
    assert not list((site.folder / "logs" / "f").glob("model.*"))


@pytest.mark.parametrize("said", ["", "a site's own plugin says no\n", "sbatch: error: \n"])
def test_a_refusal_that_nobody_knows_is_shown(site: Site, said: str) -> None:
    site.answers["sbatch"] = Done(1, "", said)
    with pytest.raises(SiteError) as error:
        site.submit()
    assert (said.strip().removeprefix("sbatch: error:") or "exit code 1") in error.value.message


def test_an_answer_without_an_id_is_no_success(site: Site) -> None:
    site.answers["sbatch"] = good("thank you\n")
    with pytest.raises(SiteError, match="sbatch printed no job id: thank you"):
        site.submit()


BUSY = Done(1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")


@pytest.mark.parametrize("answer", [recorded("down_sbatch"), SILENT, BUSY])
def test_a_controller_that_is_away(site: Site, answer: Done | Exception) -> None:
    site.answers["sbatch"] = answer
    with pytest.raises(SchedulerUnavailable) as error:
        site.submit(HF_TOKEN="x")
    assert error.value.transient
    kept = list((site.folder / "logs" / ".secrets").iterdir())
    unsure = answer in {SILENT, BUSY}  # it may have taken the job
    assert len(kept) == unsure
    assert ("squeue" in str(error.value.hint)) == unsure


def test_secrets_do_not_stay_where_there_is_no_sbatch(site: Site) -> None:
    site.answers["sbatch"] = MISSING
    with pytest.raises(SiteError, match="cannot be run"):
        site.submit(HF_TOKEN="x")
    assert list((site.folder / "logs" / ".secrets").iterdir()) == []


def test_a_log_directory_that_cannot_be_made(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    (site.folder / "logs").touch()
    with pytest.raises(AegisError, match="the log directory cannot be made") as error:
        site.submit()
    assert "--log-dir" in str(error.value.hint)
    assert site.asked == []


def test_secrets_that_cannot_be_left(site: Site) -> None:
    site.answers["sbatch"] = good("17\n")
    (site.folder / "logs").mkdir()
    (site.folder / "logs" / ".secrets").touch()
    with pytest.raises(AegisError, match="the secrets of the job cannot be written"):
        site.submit(HF_TOKEN="x")
    assert site.asked == []


# ---------------------------------------------------------------------------------------------- query


def test_all_jobs_are_one_question(site: Site) -> None:
    site.answers["squeue"] = listed(SQUEUE, *({"id": str(job), "word": "RUNNING"} for job in range(1, 501)))
    handles = [f"slurm://{job}" for job in range(1, 501)]
    assert set(site.slurm.query(handles)) == set(handles)
    assert site.programs == ["squeue"]
    assert site.environs[0]["SQUEUE_PARTITION"] == ""
    assert site.environs[0]["SLURM_TIME_FORMAT"] == "%s"


def test_nothing_is_asked_of_nobody(site: Site) -> None:
    site.answers["squeue"] = SILENT
    assert site.slurm.query([]) == {}
    assert site.slurm.query(["slurm://1; touch X", "pbs://1"]) == {}


def test_what_has_ended_is_asked_of_accounting_in_one_question(site: Site) -> None:
    site.answers["squeue"] = listed(
        SQUEUE,
        {"id": "1", "word": "RUNNING"},
        {"id": "2", "word": "CANCELLED", "nodes": "n1", "restart": "2", "output": "/l/m.%j.log", "exit": "0"},
        {"id": "3", "word": "FAILED", "exit": "768"},
    )
    site.answers["sacct"] = listed(
        SACCT,
        {"id": "2", "word": "CANCELLED by 0", "owner": "5001", "name": "allocation"},
        {"id": "3", "word": "RUNNING"},  # accounting comes seconds late
        {"id": "4", "word": "TIMEOUT", "limit": "01:00:00"},
    )
    found = site.slurm.query([f"slurm://{job}" for job in (1, 2, 3, 4, 5)])
    assert {handle: (each.state, each.reason) for handle, each in found.items()} == {
        "slurm://1": ("LAUNCHING", ""),
        "slurm://2": ("FAILED", "cancelled by user 0 (root)"),
        "slurm://3": ("FAILED", "ended with exit code 3"),
        "slurm://4": ("FAILED", "killed at its walltime of 01:00:00"),
    }
    assert (found["slurm://2"].restarts, found["slurm://2"].log, found["slurm://2"].name) == (
        2,
        "/l/m.2.log",
        "",
    )
    assert site.programs == ["squeue", "sacct"]
    assert site.asked[1][-1] == "--jobs=2,3,4,5"


@pytest.mark.parametrize(
    "answer", [recorded("down_squeue"), recorded("squeue_missing"), SILENT, Done(1, "", "")]
)
def test_a_queue_that_does_not_answer_says_nothing_of_jobs(site: Site, answer: Done | Exception) -> None:
    site.answers["squeue"] = answer
    with pytest.raises(SchedulerUnavailable):
        site.slurm.query(["slurm://1"])


def test_where_there_is_no_accounting_the_queue_is_all(site: Site) -> None:
    site.answers["squeue"] = listed(SQUEUE, {"id": "1", "word": "FAILED", "exit": "9"})
    site.answers["sacct"] = recorded("sacct_no_dbd")
    found = site.slurm.query(["slurm://1", "slurm://2"])
    assert {handle: each.reason for handle, each in found.items()} == {
        "slurm://1": "killed by signal 9 (SIGKILL)"
    }


@pytest.mark.parametrize(
    "answer",
    [MISSING, SILENT, Done(1, "", "sacct: error: Problem talking to the database: Connection refused\n")],
)
def test_accounting_that_does_not_answer_makes_nothing_of_a_job(site: Site, answer: Done | Exception) -> None:
    site.answers["squeue"] = listed(SQUEUE, {"id": "1", "word": "COMPLETED", "exit": "0"})
    site.answers["sacct"] = answer
    found = site.slurm.query(["slurm://1", "slurm://2"])
    assert found["slurm://1"].state == "SHUTDOWN"
    assert found["slurm://2"].state == "UNKNOWN"
    assert "it has left the queue, and accounting does not answer" in found["slurm://2"].reason


def test_accounting_that_lags_behind_the_queue_is_not_believed(site: Site) -> None:
    site.answers["squeue"] = good()
    site.answers["sacct"] = listed(SACCT, {"id": "1", "word": "RUNNING"})
    found = site.slurm.query(["slurm://1"])["slurm://1"]
    assert (found.state, found.word) == ("UNKNOWN", "RUNNING")
    assert found.reason == "accounting says RUNNING, but it is not in the queue"


@pytest.mark.parametrize(
    ("nodes", "host", "state"),
    [
        ("node[1-2]", "node1", "LAUNCHING"),
        ("node2", "node1", "FAILED"),
        ("", "node1", "LAUNCHING"),
        ("node2", "n/a", "LAUNCHING"),
        ("node2", "", "LAUNCHING"),
    ],
)
def test_a_job_without_its_head_has_failed(site: Site, nodes: str, host: str, state: str) -> None:
    site.answers["squeue"] = listed(
        SQUEUE, {"id": "1", "word": "RUNNING", "nodes": nodes, "batch_host": host}
    )
    found = site.slurm.query(["slurm://1"])["slurm://1"]
    assert found.state == state
    assert ("its first node node1 failed" in found.reason) == (state == "FAILED")


@pytest.mark.parametrize(
    ("leader", "follower", "state", "reason"),
    [
        ("RUNNING", "RUNNING", "LAUNCHING", ""),
        ("RUNNING", "CANCELLED", "SHUTDOWN", "cancelled"),
        ("RUNNING", "FAILED", "FAILED", "ended with exit code 1"),
        ("NODE_FAIL", "RUNNING", "FAILED", "a node of its job failed"),
        ("NODE_FAIL", "FAILED", "FAILED", "a node of its job failed"),
        ("COMPLETING", "FAILED", "LAUNCHING", "it is ending"),
        ("COMPLETED", "RUNNING", "FAILED", "the first component of its job has ended"),
        ("", "RUNNING", "FAILED", "the first component of its job has ended"),
        ("COMPLETED", "COMPLETED", "SHUTDOWN", ""),
    ],
)
def test_a_component_depends_on_the_first(
    site: Site, leader: str, follower: str, state: str, reason: str
) -> None:
    jobs = [
        {"id": "1+1", "raw": "2", "word": follower, "exit": "256", "nodes": "node3", "batch_host": "node2"}
    ]
    jobs += [{"id": "1+0", "raw": "1", "word": leader}] if leader else []
    site.answers["squeue"] = listed(SQUEUE, *jobs)
    site.answers["sacct"] = recorded("sacct_no_dbd")
    found = site.slurm.query(["slurm://1+1"])["slurm://1+1"]
    assert found.state == state
    assert found.reason.startswith(reason)


# ---------------------------------------------------------------------------------------------- cancel


def test_a_job_is_cancelled_by_its_id(site: Site) -> None:
    site.answers |= {"scancel": good(), "squeue": listed(SQUEUE, {"id": "1", "word": "COMPLETING"})}
    site.slurm.cancel("slurm://1")
    assert site.asked[0] == ["scancel", "1"]
    assert site.environs[0]["SCANCEL_STATE"] == ""


@pytest.mark.parametrize("handle", ["slurm://1; touch X", "-1", "slurm://--user=me", "slurm://"])
def test_what_is_no_id_reaches_no_command(site: Site, handle: str) -> None:
    site.answers |= {"scancel": good(), "squeue": good()}
    for verb in (site.slurm.cancel, site.slurm.logs):
        with pytest.raises(NotFoundError):
            verb(handle)
    assert site.asked == []


@pytest.mark.parametrize(
    "answer", [good(), Done(1, "", "scancel: error: Kill job error on job id 1: Invalid job id specified\n")]
)
def test_an_unknown_job_is_not_found_whatever_scancel_makes_of_it(site: Site, answer: Done) -> None:
    site.answers |= {"scancel": answer, "squeue": good(), "sacct": recorded("sacct_no_dbd")}
    with pytest.raises(NotFoundError, match="Slurm knows no job 1"):
        site.slurm.cancel("slurm://1")


def test_nothing_is_left_to_end(site: Site) -> None:
    said = "scancel: error: Kill job error on job id 1: Job/step already completing or completed\n"
    site.answers["scancel"] = Done(1, "", said)
    site.slurm.cancel("slurm://1")
    said = "scancel: error: Kill job error on job id 1: Invalid job id specified\n"
    site.answers |= {"scancel": Done(1, "", said), "squeue": good()}
    site.answers["sacct"] = listed(SACCT, {"id": "1", "word": "COMPLETED"})
    site.slurm.cancel("slurm://1")


def test_a_job_of_somebody_else(site: Site) -> None:
    site.answers["scancel"] = recorded("scancel_denied")
    with pytest.raises(SiteError, match=r"Slurm does not end job 1004: .*Access/permission denied") as error:
        site.slurm.cancel("slurm://1004")
    assert error.value.exit_code == 3


@pytest.mark.parametrize("answer", [recorded("down_scancel"), SILENT])
def test_nothing_is_cancelled_without_a_controller(site: Site, answer: Done | Exception) -> None:
    site.answers["scancel"] = answer
    with pytest.raises(SchedulerUnavailable):
        site.slurm.cancel("slurm://5")


def test_a_component_is_cancelled_alone(site: Site) -> None:
    jobs = [{"id": f"1+{number}", "raw": str(1 + number), "word": "RUNNING"} for number in range(2)]
    site.answers |= {"scancel": good(), "squeue": listed(SQUEUE, *jobs)}
    site.slurm.cancel("slurm://1+1")
    assert site.asked[0] == ["scancel", "1+1"]


@pytest.mark.parametrize(
    ("other", "argv"),
    [("RUNNING", ["scancel", "--signal=TERM", "1.0", "1.2"]), ("CANCELLED", ["scancel", "1+0"])],
)
def test_the_first_component_stops_serving_while_others_live(site: Site, other: str, argv: list[str]) -> None:
    jobs = [{"id": "1+0", "raw": "1", "word": "RUNNING"}, {"id": "1+1", "raw": "2", "word": other}]
    step = "StepId=1.batch UserId=0\nStepId=1.0 UserId=0\nStepId=1.2 UserId=0\n"
    site.answers |= {"scancel": good(), "squeue": listed(SQUEUE, *jobs), "scontrol": good(step)}
    site.slurm.cancel("slurm://1+0")
    assert argv in site.asked


# ---------------------------------------------------------------------------------------------- logs


def test_the_output_of_a_job_that_is_not_in_the_index(site: Site) -> None:
    site.answers["squeue"] = listed(
        SQUEUE,
        {"id": "1", "word": "RUNNING", "output": "/l/m.%j.log"},
        {"id": "2", "word": "RUNNING", "output": "/home/me/slurm-2.out"},
    )
    assert site.slurm.logs("slurm://1") == JobLogs("/l/m.1.log", "/l/m.1.log")
    assert site.slurm.logs("slurm://2").out == "/home/me/slurm-2.out"
    with pytest.raises(NotFoundError, match="Slurm knows no job 3"):
        site.slurm.logs("slurm://3")


# ---------------------------------------------------------------------------------------------- errors


def test_errors_of_all_kinds() -> None:
    unknown = Done(1, "", "slurm_load_jobs error: Invalid job id specified\n")
    assert isinstance(trouble("squeue", "x", unknown), NotFoundError)
    busy = Done(
        1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    )
    assert isinstance(trouble("sbatch", "x", busy), SchedulerUnavailable)


def test_a_value_that_sbatch_cannot_be_told_is_the_users_error(site: Site) -> None:
    with pytest.raises(ConfigError):
        site.slurm.render(request(name="a\nb"))
