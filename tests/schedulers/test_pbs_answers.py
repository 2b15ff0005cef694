"""What PBS is asked, and how its answers are read: JSON that is none included."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.schedulers.pbs.queue import (
    JobId,
    answer,
    decode,
    qdel_argv,
    qstat_argv,
    qsub_argv,
    same_server,
    submitted,
)
from aegis.schedulers.transport import Done

from .pbs_recordings import SERVER, json_recordings, recorded

# ------------------------------------------------------------------------------------------------ qstat's answers


def test_exit_code_and_complaints_decide_not_the_json() -> None:
    unknown = answer(recorded("err_qstat_unknown"))
    assert unknown
    assert not unknown.jobs
    assert unknown.disowns(JobId("999999"))
    assert unknown.disowns(JobId("999999", "aurora-pbs-0001"))
    assert not unknown.disowns(JobId("999999", "another-server"))
    assert answer(recorded("serverdown_qstat_f_json")) is None
    assert answer(recorded("serverunreach_qstat_json")) is None
    mixed = answer(recorded("err_qstat_mixed_known_unknown"))
    assert mixed
    assert mixed.find(JobId("2"))
    assert mixed.disowns(JobId("999999"))
    foreign = answer(recorded("err_qstat_other_server"))
    assert foreign
    assert foreign.foreign == (JobId("1", "nosuchserver"),)
    finished = answer(recorded("qstat_finished_without_x"))
    assert finished
    assert "has finished" in finished.complaint


def test_a_connection_lost_on_the_way_is_no_answer() -> None:
    known = recorded("qstat_f_json_running")
    assert answer(Done(153, known.out, "qstat: cannot connect to server x (errno=15010)\n")) is None


def test_the_broken_json_of_2023_is_read() -> None:
    name = "json_pitfall_json"
    with pytest.raises(ValueError, match="control character"):
        json.loads(recorded(name).out)
    attributes = decode(recorded(name).out)["Jobs"][f"1019.{SERVER}"]
    assert attributes["Job_Name"] == "007"
    assert attributes["Account_Name"] == "1e5"
    assert attributes["Resource_List"]["walltime"] == "01:00:00"
    assert attributes["substate"] == 20
    assert attributes["Variable_List"]["NAN"] == "nan"
    assert attributes["Variable_List"]["PBS_O_QUEUE"] == "debug"
    assert attributes["Submit_Host"].startswith("aurora-uan")


def test_both_readers_agree_on_good_json() -> None:
    for name in json_recordings():
        text = recorded(name).out
        try:
            whole = json.loads(text)
        except ValueError:
            continue
        broken = text.replace('"pbs_version"', '"x":nan,\n"pbs_version"', 1)
        again = decode(broken)
        assert again.pop("x") == "nan"
        assert again == whole


@pytest.mark.parametrize(
    "line", ['"comment":"a\nb",', '"A":nan,', '"A":0123,', '"A":"\x03\x01",', '"A":1e999,', '"A":,', '"A"']
)
def test_one_odd_line_costs_no_other_value(line: str) -> None:
    text = recorded("qstat_f_json_running").out.replace('"job_state"', f'{line}\n"job_state"')
    (found,) = decode(text)["Jobs"].values()
    assert found["job_state"] == "R"
    assert found["substate"] == 42
    assert found["Resource_List"]["nodect"] == 2


@given(st.text())
def test_any_text_is_an_answer_or_none(text: str) -> None:
    assert isinstance(decode(text), dict)
    answer(Done(0, text, text))
    answer(Done(0, recorded("qstat_f_json_running").out, text))
    submitted(text)
    JobId.parse(text)


# ------------------------------------------------------------------------------------------------ ids and commands


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1025", JobId("1025")),
        ("1025.aurora-pbs-0001", JobId("1025", "aurora-pbs-0001")),
        (f"pbs://1025.{SERVER}", JobId("1025", SERVER)),
        (f"pbs://1025.{SERVER}+1", JobId("1025", SERVER, 1)),
        (f"1015[].{SERVER}", JobId("1015[]", SERVER)),
        (f"1015[3].{SERVER}", JobId("1015[3]", SERVER)),
        *(
            (text, None)
            for text in (
                *("", "1; touch X", "1 2", "-x", "x", "1.", "1..a", "1.-a", "1\n", "$(touch X)", "1.a@b"),
                *("slurm://1", "1.a/b", "\uff11", "1+", "1+a", "1[a]", "1.a b"),
            )
        ),
    ],
)
def test_what_is_an_id(text: str, expected: JobId | None) -> None:
    assert JobId.parse(text) == expected


def test_ids_in_files_and_their_kin() -> None:
    whole = JobId("1025", SERVER)
    assert whole.short == "1025.aurora-pbs-0001"
    assert JobId("1025").short == "1025"
    assert whole.text == f"1025.{SERVER}"
    assert whole.names(JobId("1025"))
    assert whole.names(JobId("1025", "aurora-pbs-0001"))
    assert not whole.names(JobId("1025", "aurora-pbs"))
    assert not whole.names(JobId("102"))
    assert same_server("a.b", "a")
    assert not same_server("a.b", "a.c")


def test_the_id_that_qsub_prints() -> None:
    for name in ("qsub_script", "qsub_badout", "master/qsub_script"):
        job = submitted(recorded(name).out)
        assert job
        assert job.server == SERVER
    assert submitted("Welcome to PBS 3000\n\n12.srv.lab\nYour job counts 5 hours.\n") == JobId(
        "12", "srv.lab"
    )
    assert submitted("nothing here\n") is None
    assert submitted("") is None


def test_commands() -> None:
    ids = [JobId("1", "a"), JobId("2"), JobId("1", "a"), JobId("3", "a", 1)]
    assert qstat_argv(ids) == ["qstat", "-x", "-f", "-F", "json", "1.a", "2", "3.a"]
    assert qdel_argv(JobId("3", "a", 1)) == ["qdel", "3.a"]
    assert qsub_argv({}) == ["qsub", "-f"]
    assert qsub_argv({"A": "/x y", "B": "z"}) == ["qsub", "-f", "-v", "A,B"]
    assert qsub_argv({"A": "a,'b'"}) == ["qsub", "-f", "-v", "A,PBS_O_ROOM___"]
