"""The six verbs of PBS, against what a real server answered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.runs import Manifest, RunDir, find_run, register
from aegis.schedulers.base import JobLogs, SchedulerUnavailable
from aegis.schedulers.pbs import Pbs
from aegis.schedulers.pbs.codes import AWAY, HINTS
from aegis.schedulers.transport import Done, Here

from .pbs_recordings import SERVER, recorded
from .pbs_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.schedulers.base import JobRequest, Submission

TOKEN = "hf_very_secret"
ACCEPTED = Done(0, f"1025.{SERVER}\n", "")


class Answering(Here):
    """This machine, with answers of PBS instead of its commands."""

    def __init__(self, environ: Mapping[str, str], answers: dict[str, Done | Exception]) -> None:
        super().__init__(environ)
        self.answers = answers
        self.asked: list[tuple[list[str], str, dict[str, str]]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        repeatable: bool = True,
    ) -> Done:
        if argv[0] not in {"qsub", "qstat", "qdel"}:
            return super().run(argv, text=text, environ=environ, timeout=timeout)
        assert repeatable == (argv[0] != "qsub")
        self.asked.append((list(argv), text, dict(environ or {})))
        answer = self.answers[argv[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Site:
    """A home, an index of jobs, and a PBS that answers as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "AEGIS_STATE_DIR": str(folder / "state"),
        }
        self.answers: dict[str, Done | Exception] = {"qsub": ACCEPTED}
        self.transport = Answering(self.environ, self.answers)
        self.pbs = Pbs(self.transport, self.environ)

    def request(self, count: int = 1, **resources: Any) -> JobRequest:
        each = component(folder=str(self.folder / "logs" / "Llama-3.1"), resources=resources)
        return request(*[each] * count, work_dir=str(self.folder))

    def submit(self, secrets: dict[str, str] | None = None, count: int = 1, **resources: Any) -> Submission:
        wanted = self.request(count, **resources)
        return self.pbs.submit(wanted, self.pbs.render(wanted), secrets or {})

    def known(self, handle: str, **changes: Any) -> RunDir:
        """Put a job into the index."""
        name = f"m.{handle.rpartition('/')[2]}"
        run = RunDir.make(self.folder / "logs" / "m" / name)
        values: dict[str, Any] = {"job": handle, "name": "n", "models": ["m"], "run_dir": str(run.path)}
        run.write_manifest(Manifest(**{**values, **changes}))
        register(handle, run, self.environ)
        return run


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# ------------------------------------------------------------------------------------------------ submit


def test_an_accepted_job_is_recorded(site: Site) -> None:
    submission = site.submit(queue="prod")
    assert submission.handle == f"pbs://1025.{SERVER}"
    assert submission.warnings == ()
    run = find_run(submission.handle, site.environ)
    assert run.path == site.folder / "logs" / "Llama-3.1" / "Llama-3.1-8B-Instruct.1025.aurora-pbs-0001"
    manifest = run.read_manifest()
    assert (manifest.state, manifest.walltime, manifest.nodes, manifest.queue) == (
        *("PENDING", 3600),
        *(1, "prod"),
    )
    assert run.script.read_text() == site.pbs.render(site.request(queue="prod"))
    ((argv, text, _),) = site.transport.asked
    assert argv == ["qsub", "-f", "-v", "AEGIS_STATE_DIR"]
    assert text == run.script.read_text()
    assert (site.folder / "logs" / "Llama-3.1" / ".pbs").is_dir()


def test_each_component_is_recorded(site: Site) -> None:
    assert site.submit(count=2).handle == f"pbs://1025.{SERVER}"
    for number in (0, 1):
        run = find_run(f"pbs://1025.{SERVER}+{number}", site.environ)
        assert run.path.name == f"Llama-3.1-8B-Instruct.1025.aurora-pbs-0001+{number}"


def test_secrets_travel_in_a_private_file(site: Site) -> None:
    site.submit({"HF_TOKEN": TOKEN})
    ((argv, text, environ),) = site.transport.asked
    assert TOKEN not in " ".join([*argv, text, *environ.values()])
    assert argv[-1] == "AEGIS_STATE_DIR,AEGIS_SECRETS_FILE"
    file = Path(environ["AEGIS_SECRETS_FILE"])
    assert json.loads(file.read_text()) == {"HF_TOKEN": TOKEN}
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    manifest = find_run(f"pbs://1025.{SERVER}", site.environ).read_manifest()
    assert manifest.secrets_file == str(file)


def test_only_what_jobs_need_is_passed_on(site: Site) -> None:
    site.environ |= {"AEGIS_AGENT_POLICY": '{"a": 1, "b": 2}', "SECRET": "x", "AEGIS_PLATFORM_DIR": ""}
    site.submit()
    ((argv, _, environ),) = site.transport.asked
    assert argv[-1] == "AEGIS_AGENT_POLICY,AEGIS_STATE_DIR,PBS_O_ROOM_____"
    assert environ == {
        "AEGIS_AGENT_POLICY": '{"a": 1, "b": 2}',
        "AEGIS_STATE_DIR": site.environ["AEGIS_STATE_DIR"],
    }


def test_what_qsub_says_besides_is_a_warning(site: Site) -> None:
    site.answers["qsub"] = Done(0, f"Hello\n1025.{SERVER}\n", "qsub: your project has 3 hours left\n\n")
    assert site.submit().warnings == ("qsub: your project has 3 hours left",)


REFUSED = [
    "err_qsub_unknown_queue",
    "err_qsub_unknown_resource",
    "err_qsub_unknown_chunk_resource",
    "err_qsub_bad_walltime",
    "err_qsub_bad_select",
    "err_qsub_walltime_over_max",
    "err_qsub_nodes_over_max",
    "err_qsub_disabled_queue",
    "err_qsub_route_only_queue",
    "err_qsub_root",
    "err_qsub_bad_name",
    "err_qsub_bad_option",
    "err_unknown_resource_filesystems",
    "master/err_unknown_queue",
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_told_in_the_words_of_pbs(site: Site, name: str) -> None:
    site.answers["qsub"] = recorded(name)
    with pytest.raises(SiteError) as error:
        site.submit({"HF_TOKEN": TOKEN})
    assert not isinstance(error.value, SchedulerUnavailable)
    first = recorded(name).err.splitlines()[0].removeprefix("qsub: ")
    assert error.value.message.startswith(f"PBS does not take the job: {first}")
    assert "usage" not in error.value.message
    assert error.value.hint or recorded(name).code not in HINTS
    assert not list((site.folder / "logs" / ".secrets").iterdir())
    assert not list((site.folder / "logs" / "Llama-3.1").glob("Llama*"))


def test_a_job_that_goes_to_a_server_that_is_not_there(site: Site) -> None:
    site.answers["qsub"] = recorded("err_qsub_bad_server")
    with pytest.raises(SiteError, match="cannot connect to server") as error:
        site.submit()
    assert not error.value.transient


def test_a_server_that_is_down(site: Site) -> None:
    site.answers["qsub"] = recorded("serverdown_qsub")
    with pytest.raises(SchedulerUnavailable, match="the PBS server does not answer: Connection refused"):
        site.submit()
    site.answers |= {"qstat": recorded("serverdown_qstat_x_f_json"), "qdel": recorded("serverdown_qdel")}
    with pytest.raises(SchedulerUnavailable, match="Connection refused"):
        site.pbs.query([f"pbs://2.{SERVER}"])
    with pytest.raises(SchedulerUnavailable, match="Couldn't connect to cluster"):
        site.pbs.cancel(f"pbs://2.{SERVER}")


def test_after_a_time_out_nobody_knows_whether_the_job_was_taken(site: Site) -> None:
    site.answers["qsub"] = SchedulerUnavailable("qsub did not answer within 60 s")
    with pytest.raises(SchedulerUnavailable, match="within 60 s") as error:
        site.submit({"HF_TOKEN": TOKEN})
    assert "look with qstat before you submit it again" in str(error.value.hint)
    assert list((site.folder / "logs" / ".secrets").iterdir())


@pytest.mark.parametrize("said", ["", "hello\n", "1025; touch X\n"])
def test_no_id_is_no_success(site: Site, said: str) -> None:
    site.answers["qsub"] = Done(0, said, "")
    with pytest.raises(SiteError, match="qsub printed no job id"):
        site.submit()


def test_a_log_directory_that_cannot_be_made(site: Site) -> None:
    (site.folder / "logs").touch()
    with pytest.raises(AegisError, match="the log directory cannot be made") as error:
        site.submit()
    assert error.value.hint
    assert not site.transport.asked


def test_secrets_that_cannot_be_written(site: Site) -> None:
    (site.folder / "logs").mkdir()
    (site.folder / "logs" / ".secrets").touch()
    with pytest.raises(AegisError, match="the secrets of the job cannot be written"):
        site.submit({"HF_TOKEN": TOKEN})
    assert not site.transport.asked


def test_every_code_of_the_table_has_its_error() -> None:
    assert not AWAY.keys() & HINTS.keys()
    assert all(0 < code < 256 for code in (*AWAY, *HINTS))


# ------------------------------------------------------------------------------------------------ query


def test_all_jobs_are_asked_for_in_one_question(site: Site) -> None:
    site.answers["qstat"] = recorded("qstat_json_mixed")
    handles = [f"pbs://{number}.{SERVER}" for number in (14, 25, 28)]
    handles += ["pbs://26.aurora-pbs-0001", "pbs://27", f"pbs://14.{SERVER}+0", f"pbs://14.{SERVER}+1"]
    found = site.pbs.query(handles)
    ((argv, _, environ),) = site.transport.asked
    ids = [*(f"{number}.{SERVER}" for number in (14, 25, 28)), "26.aurora-pbs-0001", "27"]
    assert argv == ["qstat", "-x", "-f", "-F", "json", *ids]
    assert environ == {"TZ": "UTC0"}
    assert list(found) == handles
    assert [found[handle].word for handle in handles] == ["R", "H", "Q", "Q", "Q", "R", "R"]


def test_nothing_is_asked_for_nothing(site: Site) -> None:
    assert site.pbs.query([]) == {}
    assert site.pbs.query(["pbs://1; touch X", "pbs://-x", "slurm://1"]) == {}
    assert not site.transport.asked


def test_what_pbs_does_not_know_is_left_out(site: Site) -> None:
    site.answers["qstat"] = recorded("err_qstat_mixed_known_unknown")
    found = site.pbs.query([f"pbs://2.{SERVER}", f"pbs://999999.{SERVER}"])
    assert list(found) == [f"pbs://2.{SERVER}"]
    site.answers["qstat"] = recorded("err_qstat_unknown_x")
    assert site.pbs.query(["pbs://999999"]) == {}


def test_a_job_that_every_destination_rejected(site: Site) -> None:
    site.answers["qstat"] = recorded("qstat_after_route_rejected")
    handle = f"pbs://11.{SERVER}"
    assert site.pbs.query([handle]) == {}
    site.known(handle, queue="prod", walltime=36000)
    status = site.pbs.query([handle])[handle]
    assert status.state == "FAILED"
    assert "rejected by every destination of the routing queue prod" in status.reason
    assert (status.name, status.walltime) == ("n", 36000)


def test_a_job_that_pbs_has_forgotten_ended_as_it_said(site: Site) -> None:
    site.answers["qstat"] = recorded("err_qstat_unknown_x")
    handle = f"pbs://999999.{SERVER}"
    site.known(handle, state="SHUTDOWN", reason="as asked", exit_code=0, pid=1)
    assert site.pbs.query([handle])[handle].reason == "as asked"
    site.known(handle, state="READY", pid=1)
    status = site.pbs.query([handle])[handle]
    assert (status.state, status.reason) == (
        "FAILED",
        "PBS does not know it any more, and it did not say how it ended",
    )


def test_a_manifest_that_cannot_be_read_is_no_knowledge(site: Site) -> None:
    site.answers["qstat"] = recorded("err_qstat_unknown_x")
    handle = f"pbs://999999.{SERVER}"
    run = site.known(handle)
    run.manifest.write_text("{")
    assert site.pbs.query([handle]) == {}
    run.manifest.unlink()
    assert site.pbs.query([handle]) == {}


def test_another_server_is_no_end_of_a_job(site: Site) -> None:
    site.answers["qstat"] = recorded("err_qstat_other_server")
    handle = "pbs://1.nosuchserver"
    site.known(handle)
    status = site.pbs.query([handle])[handle]
    assert (status.state, status.reason) == ("UNKNOWN", "there is no PBS server nosuchserver here")


def test_a_complaint_is_no_end_of_a_job(site: Site) -> None:
    said = recorded("qstat_f_json_running")
    site.answers["qstat"] = Done(159, said.out, f"qstat: Unauthorized Request  3.{SERVER}\n")
    found = site.pbs.query([f"pbs://2.{SERVER}", f"pbs://3.{SERVER}"])
    assert found[f"pbs://2.{SERVER}"].state == "LAUNCHING"
    third = found[f"pbs://3.{SERVER}"]
    assert (third.state, third.reason) == ("UNKNOWN", f"Unauthorized Request  3.{SERVER}")


@pytest.mark.parametrize(
    "answer", [Done(0, "", ""), Done(1, "", "qstat: out of memory\n"), Done(0, "maintenance\n", "")]
)
def test_no_answer_is_no_news(site: Site, answer: Done) -> None:
    site.answers["qstat"] = answer
    with pytest.raises(SchedulerUnavailable):
        site.pbs.query([f"pbs://2.{SERVER}"])


# ------------------------------------------------------------------------------------------------ cancel, logs, describe


def test_one_job_is_deleted_per_call(site: Site) -> None:
    site.answers["qdel"] = recorded("qdel_queued")
    site.pbs.cancel(f"pbs://27.{SERVER}")
    assert [argv for argv, _, _ in site.transport.asked] == [["qdel", f"27.{SERVER}"]]


def test_a_job_that_has_ended_needs_no_deletion(site: Site) -> None:
    site.answers["qdel"] = recorded("qdel_finished")
    site.pbs.cancel(f"pbs://2.{SERVER}")


@pytest.mark.parametrize(
    "name", ["err_qdel_unknown", "master/err_qdel_unknown", "master_client/qdel_unknown"]
)
def test_an_unknown_job_cannot_be_deleted(site: Site, name: str) -> None:
    site.answers["qdel"] = recorded(name)
    with pytest.raises(NotFoundError, match="Unknown Job Id 999999"):
        site.pbs.cancel("pbs://999999")


def test_the_job_of_another_user_or_of_a_lost_node(site: Site) -> None:
    site.answers["qdel"] = recorded("qdel_other_user")
    with pytest.raises(SiteError, match="Unauthorized Request"):
        site.pbs.cancel(f"pbs://26.{SERVER}")
    site.answers["qdel"] = recorded("qdel_job_on_down_node")
    with pytest.raises(SiteError, match="could not connect to MOM") as error:
        site.pbs.cancel(f"pbs://1026.{SERVER}")
    assert "qdel -W force" in str(error.value.hint)


def test_a_component_is_not_deleted_with_its_job(site: Site) -> None:
    with pytest.raises(SiteError, match="one component") as error:
        site.pbs.cancel(f"pbs://26.{SERVER}+1")
    assert "through its registry" in str(error.value.hint)
    assert not site.transport.asked


@pytest.mark.parametrize("handle", ["pbs://1; touch X", "1 2", "-a", "", "pbs://$(touch X)"])
def test_what_is_no_id_is_no_job(site: Site, handle: str) -> None:
    for verb in (site.pbs.cancel, site.pbs.logs):
        with pytest.raises(NotFoundError):
            verb(handle)
    assert not site.transport.asked


def test_where_a_job_writes(site: Site) -> None:
    run = site.known(f"pbs://2.{SERVER}")
    assert site.pbs.logs(f"pbs://2.{SERVER}") == JobLogs(str(run.out), str(run.err))
    site.answers["qstat"] = recorded("qstat_x_f_json_finished")
    assert site.pbs.logs("pbs://2") == JobLogs("/home/alice/run/job1.o2", "/home/alice/run/job1.o2")
    site.answers["qstat"] = recorded("err_qstat_unknown_x")
    with pytest.raises(NotFoundError):
        site.pbs.logs("pbs://999999")


def test_what_is_here(site: Site) -> None:
    site.answers["qstat"] = Done(0, "pbs_version = 23.06.06\n", "")
    info = site.pbs.describe()
    assert (info.name, info.available, info.detail) == ("pbs", True, "PBS 23.06.06 on this machine")
    nothing = Pbs(Here({"PATH": str(site.folder)}), {}).describe()
    assert not nothing.available
    assert "qstat" in nothing.detail
