"""The stand-in against the recordings of a real PBS: the same codes, texts, keys and values, so that it cannot drift."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from aegis.schedulers.pbs.queue import decode
from tests.lab.conftest import wait_until

from .recordings import FOLDER, plain, recorded, same_answer, same_job, same_job_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import PbsLab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
SERVER = "aurora-pbs-0001.hostmgmt.cm.lab.test"
NODES = ("x4102c5s2b0n0", "x4102c5s3b0n0", "x4102c5s4b0n0", "x4102c5s5b0n0")
JOB = """#!/bin/bash -l
#PBS -N job1
#PBS -A acct
#PBS -q debug
#PBS -l select=2:ncpus=1
#PBS -l place=scatter
#PBS -l walltime=00:05:00
#PBS -l filesystems=flare:home
#PBS -k doe
#PBS -j oe
sleep ${SL:-45}
"""
UNTIL_TOLD = "until [ -e go ]; do sleep 0.05; done"
SLEEP = "#!/bin/bash\nsleep 300; echo never\n"


def words(line: str) -> list[str]:
    return line.split()


@pytest.fixture
def site(stopped_pbs: PbsLab) -> PbsLab:
    """A PBS with the names and limits of the one that was recorded."""
    pbs = stopped_pbs
    pbs.up(
        nodes={node: f"{node}.hostmgmt.cm.lab.test" for node in NODES},
        rename_hosts=False,
        first_id=2,
        grace=0.5,
    )
    (pbs.lab.work / "job1.sh").write_text(JOB)
    return pbs


def when(site: PbsLab, job_id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return a job's attributes when they are as wished."""

    def seen() -> dict[str, Any] | None:
        job = site.jobs().get(job_id, {})
        return job if job and true(job) else None

    found: dict[str, Any] = wait_until(seen, job_id)
    return found


def over(site: PbsLab, job_id: str) -> dict[str, Any]:
    return when(site, job_id, lambda job: job["job_state"] == "F")


def state(letter: str) -> Callable[[dict[str, Any]], bool]:
    return lambda job: job["job_state"] == letter


def test_what_qsub_says(site: PbsLab) -> None:
    for name, argv in (
        ("err_qsub_unknown_queue", "-q nosuch job1.sh"),
        ("err_qsub_unknown_resource", "-l bogus=1 job1.sh"),
        ("err_qsub_unknown_chunk_resource", "-l select=1:bogus=1 job1.sh"),
        ("err_qsub_bad_walltime", "-l walltime=abc job1.sh"),
        ("err_qsub_bad_select", "-l select=foo=1 job1.sh"),
        ("err_qsub_walltime_over_max", "-l walltime=02:00:00 job1.sh"),
        ("err_qsub_nodes_over_max", "-l select=3 job1.sh"),
        ("err_qsub_disabled_queue", "-q disabled job1.sh"),
        ("err_qsub_route_only_queue", "-q small job1.sh"),
        ("err_qsub_missing_script", "nosuchfile.sh"),
        ("err_qsub_bad_name", "-N bad_name: job1.sh"),
        ("qsub_script", "job1.sh"),
        ("err_qsub_route_no_dest", "-q prod -l walltime=10:00:00 job1.sh"),
        ("err_qsub_bad_depend", "-W depend=afterok:999999 job1.sh"),
    ):
        same_answer(site.run("qsub", *argv.split()), name)


def test_what_root_is_told(site: PbsLab) -> None:
    same_answer(site.run("qsub", text="true", user="root"), "err_qsub_root")


def test_a_job_that_runs_and_ends(site: PbsLab) -> None:
    job_id = site.qsub(JOB.replace("sleep ${SL:-45}", UNTIL_TOLD), "-v", "SL=1")
    same_job(when(site, job_id, lambda job: "session_id" in job), "qstat_f_json_running")
    running, expected = site.run("qstat", "-f", "-F", "json", job_id), recorded("qstat_f_json_running", "out")
    assert running.code == 0
    # line by line, but for the values and the variable of this job
    blank = [re.sub(r'(?<=:)("[^"]*"|-?\d+)', "V", text) for text in (running.out, expected)]
    assert [line for line in blank[0].splitlines() if '"SL"' not in line] == blank[1].splitlines()
    (site.home / "go").touch()
    same_job(over(site, job_id), "qstat_x_f_json_finished")
    same_answer(site.run("qstat", "-f", "-F", "json", job_id), "qstat_finished_without_x")
    same_answer(site.run("qdel", job_id), "qdel_finished")


def test_ids_that_are_none(site: PbsLab) -> None:
    for name, argv in (
        ("err_qstat_unknown", ["-f", "-F", "json", "999999"]),
        ("err_qstat_unknown_x", ["-x", "-f", "-F", "json", "999999"]),
        ("err_qstat_unknown_plain", ["999999"]),
        ("err_qstat_bad_id", ["-f", "-F", "json", "not-a-job"]),
        ("err_qstat_other_server", ["-f", "-F", "json", "1.nosuchserver"]),
    ):
        same_answer(site.run("qstat", *argv), name)
    assert site.run("qstat", "-f", "-F", "json", "-u", "bob").code == int(
        recorded("master/qstat_f_json_none", "rc")
    )
    same_answer(site.run("qdel", "999999"), "err_qdel_unknown")
    job_id = site.qsub("true", "-N", "job1")
    over(site, job_id)
    mixed = site.run("qstat", "-x", "-f", "-F", "json", job_id, "999999")
    assert mixed.code == int(recorded("err_qstat_mixed_known_unknown", "rc"))
    assert plain(mixed.err) == plain(recorded("err_qstat_mixed_known_unknown", "err"))
    assert list(decode(mixed.out)["Jobs"]) == [job_id]


def test_a_server_that_is_down(site: PbsLab) -> None:
    site.down()
    same_answer(site.run("qstat"), "serverdown_qstat")
    same_answer(site.run("qstat", "-f", "-F", "json", "2"), "serverdown_qstat_f_json")
    same_answer(site.run("qsub", "job1.sh"), "serverdown_qsub")
    same_answer(site.run("qdel", "2"), "serverdown_qdel")
    same_answer(site.run("pbsnodes", "-a", "-F", "json"), "serverdown_pbsnodes")
    site.unreachable()
    began = time.monotonic()
    same_answer(site.run("qstat", "-f", "-F", "json", "2"), "serverunreach_qstat_json")
    assert time.monotonic() - began > site.settings.unreachable


@pytest.mark.parametrize(
    ("name", "script", "argv"),
    [
        ("exit3", "exit 3", ""),
        ("selfkill", "kill -9 $$", ""),
        ("selfterm", "kill -15 $$", ""),
        ("notfound", "nosuchcmd", ""),
        ("badout", "echo x", "-o /nonexistent/dir/"),
    ],
)
def test_how_jobs_end(site: PbsLab, name: str, script: str, argv: str) -> None:
    job_id = site.qsub(f"#!/bin/bash\n{script}\n", "-N", name, "-j", "oe", *argv.split())
    same_job(over(site, job_id), f"qstat_x_f_json_{name}")
    if name == "badout":
        assert (site.spool / "undelivered" / f"{job_id}.OU").read_text() == "x\n"


@pytest.mark.parametrize(
    "script", [SLEEP, "#!/bin/bash\ntrap 'echo saving; exit 7' TERM\nfor i in {1..300}; do sleep 1; done\n"]
)
def test_a_walltime_that_is_exceeded(site: PbsLab, script: str) -> None:
    job_id = site.qsub(script, "-k", "doe", "-j", "oe", "-N", "notrap.sh", "-l", "walltime=1")
    job = over(site, job_id)
    job["Resource_List"]["walltime"] = "00:00:20"
    same_job(job, "qstat_x_f_json_walltime_notrap")
    text = (site.lab.work / f"notrap.sh.o{job_id.partition('.')[0]}").read_text()
    assert text.startswith("=>> PBS: job killed: walltime 1 exceeded limit 1\n")


def test_jobs_that_wait(site: PbsLab) -> None:
    job4 = "#!/bin/bash\nsleep 5\n"
    for name, job_name, argv in (
        ("qstat_x_f_json_held", "heldjob", "-h"),
        (
            "qstat_x_f_json_impossible",
            "impossible",
            "-q workq -l select=5:ncpus=1 -l place=scatter -l walltime=60",
        ),
        ("qstat_x_f_json_toomanycpus", "bigcpu", "-q workq -l select=1:ncpus=209 -l walltime=60"),
        ("qstat_x_f_json_stopped", "instopped", "-q stopped -l select=1 -l walltime=60"),
    ):
        (recording,) = decode(recorded(name, "out"))["Jobs"].values()
        job_id = site.qsub(job4, "-N", job_name, *argv.split())
        job = when(site, job_id, lambda job: job["job_state"] == "H" or "comment" in job)
        job["Resource_List"] = recording["Resource_List"]  # the recorded one was changed meanwhile
        same_job(job, name)
    site.run("qhold", job_id)
    same_job_state(when(site, job_id, state("H")), "qstat_f_json_held_after_qhold")
    site.run("qrls", job_id)
    when(site, job_id, state("Q"))
    site.run("qdel", job_id)
    deleted = over(site, job_id)
    assert (deleted["substate"], deleted["comment"]) == (91, "Not Running: Queue not started. and terminated")
    assert "Exit_status" not in deleted


def test_a_job_that_waits_for_nodes_behind_a_routing_queue(site: PbsLab) -> None:
    first = site.qsub(SLEEP, "-q", "workq", "-l", "select=1:ncpus=208")
    argv = words("-k doe -j oe -l walltime=300 -l select=4:ncpus=1 -l place=scatter -q prod -N waitnodes")
    waits = site.qsub(SLEEP, *argv)
    same_job(when(site, waits, lambda job: "comment" in job), "qstat_f_json_queued")
    site.run("qdel", first)
    runs = when(site, waits, state("R"))
    assert len(runs["exec_host"].split("+")) == 4


def test_a_job_that_no_destination_takes_vanishes(site: PbsLab) -> None:
    job_id = site.qsub(JOB, "-q", "prod", "-l", "walltime=10:00:00")
    wait_until(lambda: site.run("qstat", "-x", "-f", "-F", "json", job_id).code == 153)
    done = site.run("qstat", "-x", "-f", "-F", "json", job_id)
    same_answer(done, "qstat_after_route_rejected")


def test_deletions(site: PbsLab) -> None:
    job_id = site.qsub(SLEEP, "-k", "doe", "-j", "oe", "-N", "notrap.sh", "-l", "walltime=300")
    when(site, job_id, state("R"))
    same_answer(site.run("qdel", job_id, user="bob"), "qdel_other_user")
    same_answer(site.run("qdel", job_id), "qdel_running_notrap")
    same_job(over(site, job_id), "qstat_x_f_json_qdel_notrap")


def test_a_deleted_job_that_ignores_it_runs_on_for_a_while(site: PbsLab) -> None:
    stubborn = "#!/bin/bash\ntrap '' TERM\necho on; sleep 300\n"
    job_id = site.qsub(stubborn, "-k", "doe", "-j", "oe", "-N", "trap.sh", "-l", "walltime=300")
    output = site.lab.work / f"trap.sh.o{job_id.partition('.')[0]}"
    wait_until(lambda: output.exists() and output.read_text() == "on\n")
    began = time.monotonic()
    assert site.run("qdel", job_id).code == 0
    job = site.jobs()[job_id]
    assert job["job_state"] == "R"
    assert job["comment"].endswith("and terminated by alice@aurora-uan-0009.hostmgmt.cm.lab.test")
    assert site.run("qdel", job_id).code == 0
    assert over(site, job_id)["Exit_status"] == 271
    assert time.monotonic() - began >= site.settings.grace


def test_several_ids_with_an_unknown_one_end_the_server(site: PbsLab) -> None:
    first, second = site.qsub(SLEEP, "-h"), site.qsub(SLEEP)
    done = site.run("qdel", first, second, "999999")
    assert (done.code, done.err) == (0, "")
    wait_until(lambda: site.run("qstat").code == 255)
    site.up()
    assert {job["job_state"] for job in site.jobs().values()} <= {"F", "R", "E"}


def test_dependencies(site: PbsLab) -> None:
    first = site.qsub("sleep 0.5; exit 1", "-N", "dep1", "-j", "oe")
    second = site.qsub("exit 0", "-W", f"depend=afterok:{first}", "-N", "dep2", "-j", "oe")
    third = site.qsub("exit 0", "-W", f"depend=afterany:{first}", "-N", "dep3", "-j", "oe")
    same_job(site.jobs()[second], "qstat_f_json_dep_held")
    assert over(site, second)["substate"] == 92
    assert "Exit_status" not in over(site, second)
    assert over(site, third)["Exit_status"] == 0
    bad = site.qsub(JOB, "-W", "depend=afterok:999999")
    same_job(over(site, bad), "qstat_after_bad_depend")


def test_an_array(site: PbsLab) -> None:
    job_id = site.qsub(f"{UNTIL_TOLD}; exit $PBS_ARRAY_INDEX", "-J", "0-2", "-N", "arr", "-j", "oe")
    assert job_id == f"2[].{SERVER}"
    argv = ["qstat", "-x", "-t", "-f", "-F", "json", job_id]
    running = wait_until(lambda: _three(decode(site.run(*argv).out)["Jobs"], "R"))
    same_job(running[job_id], "qstat_f_json_array")
    (site.home / "go").touch()
    done = wait_until(lambda: _three(decode(site.run(*argv).out)["Jobs"], "F"))
    for number in ("[]", "[0]", "[1]", "[2]"):
        same_job(done[f"2{number}.{SERVER}"], "qstat_x_t_f_json_array_done", f"1015{number}")


def _three(jobs: dict[str, Any], letter: str) -> dict[str, Any] | None:
    whole = letter if letter == "F" else "B"
    states = [job["job_state"] for job in jobs.values()]
    return jobs if states == [whole, letter, letter, letter] else None


def test_nodes_that_are_lost(site: PbsLab) -> None:
    sister = site.qsub(
        UNTIL_TOLD,
        *words("-k doe -j oe -N trap.sh -l select=2 -l place=scatter -l walltime=300"),
    )
    when(site, sister, state("R"))
    common = ["-k", "doe", "-j", "oe", "-l", "walltime=300", "-l", f"select=1:vnode={NODES[2]}"]
    again = site.qsub(SLEEP, *common, "-N", "msdown")
    never = site.qsub(SLEEP, *common, "-N", "msdown_norerun", "-r", "n")
    forced = site.qsub(SLEEP, *common, "-N", "notrap.sh")
    for each in (again, never, forced):
        when(site, each, lambda job: job["job_state"] == "R" and "session_id" in job)
    site.lose(NODES[1])
    site.lose(NODES[2])
    same_answer(site.run("qdel", forced), "qdel_job_on_down_node")
    same_answer(site.run("qdel", "-W", "force", forced), "qdel_force_job_on_down_node")
    assert over(site, forced)["substate"] == 91
    assert "Exit_status" not in over(site, forced)
    same_answer(site.run("pbsnodes", "-l"), "pbsnodes_l")
    same_job(
        when(site, again, lambda job: job["job_state"] == "Q" and "comment" in job),
        "qstat_x_f_json_msdown_rerunable",
    )
    same_job(over(site, never), "qstat_x_f_json_msdown_norerun")
    (site.home / "go").touch()
    lost = over(site, sister)
    assert (lost["substate"], lost["Exit_status"]) == (93, 0)
    site.restore(NODES[2])
    runs = when(site, again, state("R"))
    assert runs["run_count"] == 2


def test_nodes_and_queues(site: PbsLab) -> None:
    idle = decode(site.run("pbsnodes", "-F", "json", NODES[0]).out)
    expected = decode(recorded("pbsnodes_one_json", "out"))
    assert list(idle["nodes"][NODES[0]]) == list(expected["nodes"][NODES[0]])
    same_answer(site.run("pbsnodes", "-F", "json", "nosuch"), "err_pbsnodes_unknown")
    queues = decode(site.run("qstat", "-Q", "-f", "-F", "json").out)["Queue"]
    recorded_queues = decode(recorded("qstat_Q_f_json", "out"))["Queue"]
    assert list(queues) == list(recorded_queues)
    for name in ("workq", "disabled", "stopped", "prod"):
        assert queues[name] == recorded_queues[name]


def test_values_that_release_23_garbles(site: PbsLab) -> None:
    variables = 'Q=he said "hi",BS=a\\b,TAB=x\ty,NUM=0123,UTF=é,EMPTY=,EQ=a=b,NAN=nan,INF=inf,HEX=0x10'
    job_id = site.qsub("true", "-h", "-N", "007", "-A", "1e5", "-v", variables)
    text = site.run("qstat", "-f", "-F", "json", job_id).out

    def odd(answer: str) -> list[str]:
        return [
            line.strip()
            for line in answer.splitlines()
            if re.search(r'"(Q|BS|TAB|NUM|UTF|EMPTY|EQ|NAN|INF|HEX|Job_Name|Account_Name)":', line)
        ]

    assert odd(text) == odd(recorded("json_pitfall_json", "out"))


def test_what_a_job_sees(site: PbsLab) -> None:
    job_id = site.qsub(JOB.replace("sleep ${SL:-45}", 'env; cat "$PBS_NODEFILE"'), "-N", "job1")
    over(site, job_id)
    text = (site.lab.work / "job1.o2").read_text()
    recording = (FOLDER / "job_env_inside_2node.txt").read_text()
    names = set(
        re.findall(r"^([A-Z_]+)=", recording.partition("--env")[2].partition("--limits")[0], re.MULTILINE)
    )
    there = set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))
    assert names - there == {
        "MANPATH",
        "TMPDIR",
    }  # of the shell's profile, and a folder that is not made here
    assert f"PWD={site.home}\n" in text
    assert text.endswith("".join(f"{node}.hostmgmt.cm.lab.test\n" for node in NODES[:2]))


def test_variables_that_are_passed_on(site: PbsLab) -> None:
    site.environ |= {"FOO": "bar", "POLICY": '{"a": 1, "b": "x,y"}'}
    script = 'printf "%s|" "$FOO" "$X" "$Y" "$Z" "$POLICY"'
    job_id = site.qsub(script, "-v", "FOO,X=1,Y='a,b',Z=c,POLICY,PBS_O_ROOM__", "-j", "oe", "-N", "v")
    over(site, job_id)
    assert (site.lab.work / "v.o2").read_text() == 'bar|1|a,b|c|{"a": 1, "b": "x,y"}|'
    refused = site.run("qsub", "-v", "NOT_THERE", text="true")
    assert (refused.code, refused.err) == (1, "qsub: cannot send environment with the job\n")


def test_a_folder_for_the_output_must_be_there(site: PbsLab) -> None:
    (site.lab.work / "logs").mkdir()
    job_id = site.qsub("echo out; echo err >&2", "-k", "doe", "-j", "oe", "-o", f"{site.lab.work}/logs/")
    over(site, job_id)
    assert (site.lab.work / "logs" / f"{job_id}.OU").read_text() == "out\nerr\n"
    lost = site.qsub("echo out", "-k", "doe", "-j", "oe", "-o", f"{site.lab.work}/nowhere/")
    held = when(site, lost, state("H"))
    assert (held["Hold_Types"], held["comment"]) == ("s", "job held, too many failed attempts to run")
