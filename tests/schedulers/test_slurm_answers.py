"""What Slurm says, in words: every state, every way to end, every reason to wait; and text that nobody expects.

`squeue.out` and `sacct.out` are recordings of Slurm 22.05.8, asked with the very commands of `queue.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.schedulers.slurm.judge import judge
from aegis.schedulers.slurm.queue import (
    SACCT,
    SEPARATOR,
    SQUEUE,
    JobId,
    Row,
    accepted,
    by_id,
    holds,
    rows,
    sacct_argv,
    seconds,
    squeue_argv,
    steps,
)
from aegis.schedulers.slurm.reasons import WAITS, waiting
from aegis.schedulers.slurm.words import STATES, is_ended, plain, status

FOLDER = Path(__file__).parents[1] / "fixtures" / "slurm"
QUEUE = by_id(rows((FOLDER / "squeue.out").read_text(), SQUEUE))
RECORDS = by_id(rows((FOLDER / "sacct.out").read_text(), SACCT))
ANY = st.text(st.characters(exclude_categories=["Cs"]))

# The base states and flags of the releases 22.05 to 25.05, from the manual pages of squeue and sacct and the page of state codes.
DOCUMENTED = [
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "CONFIGURING", "DEADLINE", "EXPEDITING"),
    *("FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING", "POWER_UP_NODE", "PREEMPTED"),
    *("RECONFIG_FAIL", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD", "REVOKED"),
    *("RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED", "TIMEOUT"),
    "UPDATE_DB",
]


def row(**values: Any) -> Row:
    return Row(**{"id": "7", "raw": "7", "word": "RUNNING", "nodes": "node1", **values})


# ---------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("word", DOCUMENTED)
def test_every_documented_state_has_a_meaning(word: str) -> None:
    found = status(row(word=word))
    assert found.word == word
    assert found.state != "UNKNOWN" or word == "REVOKED"
    assert found.reason or word in {"RUNNING", "PENDING", "COMPLETED", "UPDATE_DB"}
    assert is_ended(word) == (found.state in {"SHUTDOWN", "FAILED"})


def test_no_other_state_is_claimed_to_be_known() -> None:
    assert set(STATES) == set(DOCUMENTED)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("CANCELLED by 5001", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("COMPLETI+", "COMPLETING"),
        ("COMPLET+", "COMPLET+"),  # two may be meant
        ("", ""),
    ],
)
def test_states_with_additions_and_without_their_ends(word: str, meant: str) -> None:
    assert plain(word) == meant


def test_a_state_that_nobody_knows_is_shown() -> None:
    found = status(row(word="FROBNICATING"))
    assert (found.state, found.word) == ("UNKNOWN", "FROBNICATING")
    assert "FROBNICATING" in found.reason


@given(ANY, ANY, ANY, ANY, ANY)
def test_any_answer_has_a_status(word: str, reason: str, exit_: str, nodes: str, limit: str) -> None:
    found = status(
        row(word=word, reason=reason, exit=exit_, nodes=nodes, limit=limit, start=limit, memory=nodes)
    )
    assert found.word == word
    waiting(reason)


# ---------------------------------------------------------------------------------------------- how jobs end


@pytest.mark.parametrize(
    ("values", "state", "reason", "code", "number"),
    [
        ({"word": "COMPLETED", "exit": "0:0"}, "SHUTDOWN", "", 0, None),
        ({"word": "FAILED", "exit": "3:0"}, "FAILED", "ended with exit code 3", 3, None),
        ({"word": "FAILED", "exit": "768"}, "FAILED", "ended with exit code 3", 3, None),
        ({"word": "FAILED", "exit": "0:9"}, "FAILED", "killed by signal 9 (SIGKILL)", None, 9),
        ({"word": "FAILED", "exit": "9"}, "FAILED", "killed by signal 9 (SIGKILL)", None, 9),
        ({"word": "FAILED", "exit": "0:99"}, "FAILED", "killed by signal 99", None, 99),
        (
            {"word": "FAILED", "exit": "143:0"},
            "FAILED",
            "ended with exit code 143, which is signal 15 (SIGTERM)",
            143,
            None,
        ),
        ({"word": "FAILED", "exit": "255:0"}, "FAILED", "ended with exit code 255", 255, None),
        (
            {"word": "FAILED", "exit": "127:0"},
            "FAILED",
            "ended with exit code 127: a command was not found",
            127,
            None,
        ),
        (
            {"word": "FAILED", "exit": "0:53", "reason": "JobLaunchFailure"},
            "FAILED",
            "it did not start: its output file could not be opened",
            None,
            None,
        ),
        (
            {"word": "FAILED", "exit": "0:53", "output": "/logs/m.%j.log"},
            "FAILED",
            "it did not start: its output file could not be opened: /logs/m.7.log",
            None,
            None,
        ),
        (
            {"word": "FAILED", "exit": "0:0", "reason": "JobLaunchFailure"},
            "FAILED",
            "it could not be started on its nodes",
            None,
            None,
        ),
        ({"word": "FAILED"}, "FAILED", "it failed", None, None),
        (
            {"word": "TIMEOUT", "limit": "01:00:00"},
            "FAILED",
            "killed at its walltime of 01:00:00",
            None,
            None,
        ),
        (
            {"word": "TIMEOUT", "limit": "2-01:30:00"},
            "FAILED",
            "killed at its walltime of 49:30:00",
            None,
            None,
        ),
        ({"word": "TIMEOUT", "limit": "UNLIMITED"}, "FAILED", "killed at its walltime", None, None),
        (
            {"word": "OUT_OF_MEMORY", "exit": "0:125", "memory": "64G"},
            "FAILED",
            "out of memory: it took more than the 64G that it asked for",
            None,
            None,
        ),
        ({"word": "OUT_OF_MEMORY", "exit": "0:125"}, "FAILED", "out of memory", None, None),
        ({"word": "NODE_FAIL"}, "FAILED", "a node failed: node1", None, None),
        (
            {"word": "NODE_FAIL", "nodes": "node[1-2]"},
            "FAILED",
            "a node failed: one of node[1-2]",
            None,
            None,
        ),
        ({"word": "NODE_FAIL", "nodes": "None assigned"}, "FAILED", "a node failed", None, None),
        ({"word": "NODE_FAIL", "id": "7+0"}, "FAILED", "a node failed", None, None),
        ({"word": "PREEMPTED"}, "FAILED", "preempted: another job took its nodes", None, None),
        ({"word": "CANCELLED by 5001", "owner": "5001"}, "SHUTDOWN", "cancelled by its user", None, None),
        ({"word": "CANCELLED by 0", "owner": "5001"}, "FAILED", "cancelled by user 0 (root)", None, None),
        ({"word": "CANCELLED by 0", "owner": "0"}, "SHUTDOWN", "cancelled by its user", None, None),
        ({"word": "CANCELLED by 7", "owner": "5001"}, "FAILED", "cancelled by user 7", None, None),
        ({"word": "CANCELLED", "nodes": ""}, "SHUTDOWN", "cancelled while it waited", None, None),
        (
            {"word": "CANCELLED by 7", "owner": "7", "nodes": "None assigned"},
            "SHUTDOWN",
            "cancelled by its user while it waited",
            None,
            None,
        ),
    ],
)
def test_how_a_job_ended_is_told(
    values: dict[str, str], state: str, reason: str, code: int | None, number: int | None
) -> None:
    found = status(row(end="1795251829", **values))
    assert (found.state, found.reason, found.exit_code, found.signal) == (state, reason, code, number)
    assert found.ended == 1795251829


# ---------------------------------------------------------------------------------------------- why jobs wait


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for free nodes (Resources)"),
        ("(Resources)", "waits for free nodes (Resources)"),
        ("Priority", "waits behind jobs of higher priority (Priority)"),
        ("None", ""),
        ("", ""),
        (
            "PartitionTimeLimit",
            "asks for more than the partition's time limit: it will never start (PartitionTimeLimit)",
        ),
        ("JobHeldUser", "held by its user: `scontrol release` lets it go (JobHeldUser)"),
        ("QOSMaxJobsPerUserLimit", "waits: its user has reached a limit of its QoS (QOSMaxJobsPerUserLimit)"),
        (
            "QOSMaxWallDurationPerJobLimit",
            "asks for more or less than its QoS gives to one job: it will never start (QOSMaxWallDurationPerJobLimit)",
        ),
        ("AssocMaxJobsLimit", "waits: its user has reached a limit of its account (AssocMaxJobsLimit)"),
        (
            "AssocGrpGRES",
            "waits: the running jobs of its account have reached a limit together (AssocGrpGRES)",
        ),
        ("AssocGrpCPUMinutesLimit", "waits: the time of its account is used up (AssocGrpCPUMinutesLimit)"),
        (
            "AssocGrpCPURunMinutesLimit",
            "waits: the running jobs of its account have reached a limit together (AssocGrpCPURunMinutesLimit)",
        ),
        ("MaxGRESPerAccount", "waits: its account has reached a limit of the QoS (MaxGRESPerAccount)"),
        ("BurstBufferStageIn", "waits for the burst buffer (BurstBufferStageIn)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node[1-2]",
            "waits for nodes that are down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:node[1-2])",
        ),
        (
            "launch_failed_requeued_held",
            "held: it could not be started on its nodes",
        ),
        ("A_new_reason", "A_new_reason"),
        ("a text, of some plugin", "a text, of some plugin"),
    ],
)
def test_why_a_job_waits_is_told(reason: str, words: str) -> None:
    assert waiting(reason) == words
    assert status(row(word="PENDING", reason=reason)).reason == words


@pytest.mark.parametrize(
    "reason", [reason for reason in WAITS if reason not in {"", "None"} and " " not in reason]
)
def test_every_reason_is_shown_with_the_word_of_slurm(reason: str) -> None:
    assert waiting(reason).endswith(f" ({reason})")


# ---------------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        ("1001", "FAILED", "ended with exit code 3"),
        ("1002", "FAILED", "killed by signal 9 (SIGKILL)"),
        ("1003", "SHUTDOWN", ""),
        ("1004", "FAILED", "it did not start: its output file could not be opened: /nonexistent/x.1004.log"),
        ("1005", "FAILED", "killed at its walltime of 00:01:00"),
        ("1006", "FAILED", "a node failed: node2"),
        ("1007", "SHUTDOWN", "cancelled"),
        ("1009", "PENDING", "waits for its start time (BeginTime)"),
        ("1010", "SHUTDOWN", "cancelled while it waited"),
        ("1011+0", "FAILED", "a node failed"),
        ("1013", "LAUNCHING", ""),
        ("1014_0", "LAUNCHING", ""),
        ("1014", "PENDING", "waits for other jobs of its array (JobArrayTaskLimit)"),
        (
            "1020",
            "PENDING",
            "asks for more or fewer nodes than the partition gives to one job: it will never start (PartitionNodeLimit)",
        ),
        (
            "1023",
            "PENDING",
            "waits for nodes that are down, drained or reserved",
        ),
    ],
)
def test_what_squeue_said(job: str, state: str, reason: str) -> None:
    found = status(QUEUE[job])
    assert (found.state, found.reason) == (state, reason)


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        ("1001", "FAILED", "ended with exit code 3"),
        ("1002", "FAILED", "killed by signal 9 (SIGKILL)"),
        ("1004", "FAILED", "it did not start: its output file could not be opened"),
        ("1007", "FAILED", "cancelled by user 0 (root)"),
        ("1008", "SHUTDOWN", "cancelled by its user"),
        ("1010", "SHUTDOWN", "cancelled by its user while it waited"),
        ("1011+1", "FAILED", "ended with exit code 127: a command was not found"),
        ("1013", "LAUNCHING", ""),  # not RESIZING, which it was when it lost a node
    ],
)
def test_what_sacct_said(job: str, state: str, reason: str) -> None:
    found = status(RECORDS[job])
    assert (found.state, found.reason) == (state, reason)


def test_all_that_is_known_of_a_job_that_runs() -> None:
    found = status(QUEUE["1013"])
    assert (found.name, found.nodes, found.walltime, found.restarts) == ("headless", "node4", 600, 0)
    assert (found.submitted, found.started, found.ended) == (1795251857, 1795251858, None)
    assert found.log == "/home/alice/logs/model/.slurm/model-7B.1013.log"


def test_a_job_that_waits_has_no_start_yet() -> None:
    found = status(QUEUE["1022"])
    assert (found.started, found.ended, found.nodes) == (None, None, "")
    assert status(QUEUE["1009"]).restarts == 1


def test_a_component_is_found_by_both_its_numbers_and_has_the_output_of_the_first() -> None:
    assert QUEUE["1012"] is QUEUE["1011+1"]
    assert QUEUE["1011"] is QUEUE["1011+0"]
    assert QUEUE["1011+1"].log == "/home/alice/logs/model/.slurm/model-7B.1011.log"


@pytest.mark.parametrize(
    ("job", "name"),
    [("1015", "a|b,c"), ("1016", "a b"), ("1017", "$(touch X)"), ("1018", "é🎉"), ("1010", None)],
)
def test_names_are_whole(job: str, name: str | None) -> None:
    assert QUEUE[job].name == (name or "waiting and cancelled")


def test_a_name_of_two_lines_is_no_second_job() -> None:
    assert QUEUE["1019"].name == "x"
    assert (
        len({row.id for row in QUEUE.values()}) == len((FOLDER / "squeue.out").read_text().splitlines()) - 1
    )


def test_a_log_that_is_not_ours_is_not_guessed() -> None:
    assert QUEUE["1016"].log == ""
    assert row(output="/l %%/m.%j.log").log == "/l %/m.7.log"


@given(ANY)
def test_any_text_is_read(text: str) -> None:
    by_id(rows(text, SQUEUE))
    by_id(rows(text, SACCT))
    accepted(text)
    steps(text, "7")
    seconds(text)
    JobId.parse(text)


@given(st.lists(st.lists(ANY, min_size=12, max_size=14), max_size=4))
def test_any_fields_are_read(lines: list[list[str]]) -> None:
    text = "\n".join(SEPARATOR.join(line) for line in lines)
    for found in (*rows(text, SQUEUE), *rows(text, SACCT)):
        status(found)
        assert isinstance(found.restarts, int)


# ---------------------------------------------------------------------------------------------- small things


@pytest.mark.parametrize(
    ("handle", "text", "component"),
    [("slurm://17", "17", None), ("17", "17", None), ("slurm://17+1", "17+1", 1), ("17_3", "17_3", None)],
)
def test_ids(handle: str, text: str, component: int | None) -> None:
    job = JobId.parse(handle)
    assert job is not None
    assert (job.text, job.component) == (text, component)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "slurm://",
            "1; touch X",
            "$(id)",
            "-1",
            "1 2",
            "1\n2",
            "1+",
            "+1",
            "1+-1",
            "\uff11\uff12",
            "pbs://1",
            "1.0",
            "abc",
        ),
        *("1_[2-3]", "1" * 11, "1+" + "1" * 8, "slurm://slurm://1"),
    ],
)
def test_what_is_no_id(text: str) -> None:
    assert JobId.parse(text) is None


@pytest.mark.parametrize(
    ("out", "job"),
    [
        ("1002\n", "1002"),
        ("1002;cluster\n", "1002"),
        ("welcome to the site\n1002\n", "1002"),
        ("", None),
        ("Submitted\n", None),
    ],
)
def test_the_id_that_sbatch_printed(out: str, job: str | None) -> None:
    assert accepted(out) == job


def test_the_steps_of_a_job() -> None:
    text = "StepId=1032.batch UserId=0\nStepId=1032.1 UserId=0 \nStepId=10320.2 UserId=0\nStepId=1032.extern UserId=0\n"
    assert steps(text, "1032") == ["1032.1"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1:00", 60), ("30:00", 1800), ("1:00:00", 3600), ("2-00:00:00", 172800), ("0:30", 30)]
    + [(text, None) for text in ("UNLIMITED", "Partition_Limit", "INVALID", "", "N/A", "30")],
)
def test_time_limits(text: str, number: int | None) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize(
    ("nodes", "host", "held"),
    [
        ("node1", "node1", True),
        ("node1", "node10", False),
        ("node[1-2,4]", "node4", True),
        ("node[1-2,4]", "node3", False),
        ("gpu[001-012]-ib,login", "gpu007-ib", True),
        ("gpu[001-012]-ib,login", "login", True),
        ("gpu[001-012]-ib,login", "gpu007", False),
        ("rack[1-2]n[1-4]", "rack9n9", True),  # cannot be read: nothing is claimed
        ("", "node1", False),
    ],
)
def test_who_is_in_a_host_list(nodes: str, host: str, held: bool) -> None:
    assert holds(nodes, host) == held


@given(ANY, ANY)
def test_any_host_list_is_read(nodes: str, host: str) -> None:
    holds(nodes, host)
    holds(f"n[{nodes}]", f"n{host}")


def test_one_question_each() -> None:
    assert squeue_argv()[:5] == ["squeue", "--me", "--all", "--states=all", "--noheader"]
    ids = [JobId("1"), JobId("2", "+", "0"), JobId("2", "+", "1"), JobId("3", "_", "4")]
    assert sacct_argv(ids)[-1] == "--jobs=1,2,3_4"


def test_a_record_that_accounting_has_only_begun_makes_nobody_else_the_canceller() -> None:
    waits = Row(id="1", raw="1", word="CANCELLED", nodes="node1", owner="5001")
    begun = Row(id="1", raw="1", word="CANCELLED by 5001", nodes="node1", owner="0", name="allocation")
    job = JobId.parse("1")
    assert job
    found = judge(job, {"1": waits}, {"1": begun}, "")
    assert found
    assert (found.state, found.reason) == ("SHUTDOWN", "cancelled by its user")
