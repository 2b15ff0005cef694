"""What `aegis map` makes of its arguments, and what it tells; the work itself: tests/mapper."""

from __future__ import annotations

import datetime as dt
import io
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.cli.live import Live, clock_text, count_text
from aegis.cli.map import split_handle
from aegis.cli.map_end import End, continuation, find_end, grace_of, grace_of_signal
from aegis.cli.map_told import Told, progress_line, summary_line
from aegis.errors import ConfigError
from aegis.mapper.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NOW: dict[str, Any] = {
    "rows": 20_000, "done": 5_000, "failed": 3, "in_flight": 128, "instances": 2, "finished": 4_000,
    "prompt_tokens": 1, "completion_tokens": 2, "seconds": 10.0, "rate": 612.3, "prompt_rate": 12_345.0,
    "completion_rate": 999.6, "eta": 24.4, "errors": {}, "trouble": "",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "AEGIS_JOB", "AEGIS_REGISTRY_URL", "AEGIS_REGISTRY_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text\nx\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("t.csv", "--output OUT"),
        ("--output o", "name an input"),
        ("t.csv --output o slurm://1 pbs://2", "one job, not 2"),
        ("t.csv --output o --model m", "--model is for rows with a --prompt"),
        ("t.csv --output o --id-column x", "--id-column is for rows with a --prompt"),
        ("t.csv --output o", "nothing says what to ask"),
        ("b.jsonl --output o", "need --prompt"),
        ("t.csv --output o --prompt x", "names no column"),
        ("t.csv --output o --prompt {txt}", "did you mean 'text'?"),
        ("t.csv --output o --prompt {text} --param seed", "is no NAME=JSON"),
        ("t.csv --output o --prompt {text} --param a=low", "'a=\"...\"'"),
        ("t.csv --output o --prompt {text} --param stream=true", "that is for aegis to say"),
        ("t.csv --output o --prompt {text} --param model=1 --model m", "given twice"),
        ("t.csv --output o --prompt {text} --system x --kind embeddings", "for chats"),
        ("t.csv --output o --prompt {text} --walltime 30", "HH:MM:SS"),
        ("t.csv --output o --prompt {text} --stop-at 2001-01-01", "ago"),
        ("t.csv --output o --prompt {text} --stop-at 26:00", "--stop-at"),
        ("t.csv --output o --prompt {text} --resubmit", "this is no job"),
        ("t.csv --output o --prompt {text} --resubmit --resubmit-with x", "exclude each other"),
        ("t.csv --output t.csv --prompt {text}", "is the input"),
        ("none/*.csv --output o --prompt {text}", "no file is meant by"),
        ("t.csv --output o --prompt {text}", "no servers are named"),
        ("t.csv --output o --prompt {text} --endpoints-file none", "cannot be read"),
    ],
)
def test_what_is_asked_for_wrongly_ends_with_2_and_a_sentence(
    aegis: Callable[..., Any], folder: Path, arguments: str, told: str
) -> None:
    done = aegis("map", *arguments.split())
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert not (folder / "o").exists()


def test_a_job_is_known_by_its_form() -> None:
    assert split_handle(["a", "pbs://1.x", "b"]) == ("pbs://1.x", ["a", "b"])
    assert split_handle(["a", "@s3://list"]) == (None, ["a", "@s3://list"])


# ------------------------------------------------------------------------------------------- the end


def end_of(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], *given: str | None
) -> tuple[End | None, list[str]]:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    walltime, stop_at = given or (None, None)
    return find_end(None, walltime, stop_at, said.append), said


def test_the_first_of_the_ends_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of(monkeypatch, {}) == (None, [])
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    end, said = end_of(monkeypatch, job)
    assert end
    assert (said, end.why) == ([], "the end of slurm://7")
    assert 3580 < end.seconds < 3591  # something is left to end in good order
    first, _ = end_of(monkeypatch, {}, "00:30:00", None)
    assert first == End(1800.0, "--walltime 00:30:00")
    inside, _ = end_of(monkeypatch, {"AEGIS_JOB": "slurm://7"})
    assert inside
    assert 3530 < inside.seconds < 3541  # its servers are stopped a minute before


def test_a_job_whose_end_nobody_tells_is_no_obstacle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    end, said = end_of(monkeypatch, {"PBS_JOBID": "1.server"})
    assert end is None
    assert [line.partition(":")[0] for line in said] == ["warning"]


def test_a_time_of_the_clock_is_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for minutes in (-5, 5):
        moment = dt.datetime.now().astimezone() + dt.timedelta(minutes=minutes)
        end, _ = end_of(monkeypatch, {}, None, f"{moment:%H:%M}")
        assert end
        expected = minutes * 60 % 86400
        assert expected - 61 < end.seconds <= expected + 3601  # a day may have 25 hours
    day, _ = end_of(
        monkeypatch, {}, None, f"{dt.datetime.now().astimezone() + dt.timedelta(days=2):%Y-%m-%dT%H:%M}"
    )
    assert day
    assert 2 * 86400 - 3700 < day.seconds < 2 * 86400 + 3700


def test_little_time_leaves_little_grace() -> None:
    assert grace_of(None, None) == 60
    assert grace_of(None, End(100, "")) == 10
    assert grace_of(30, End(100, "")) == 30
    assert grace_of_signal(None, {}) is None
    assert grace_of_signal(None, {"PBS_JOBID": "1"}) == 8
    assert grace_of_signal(2, {"SLURM_JOB_ID": "1"}) == 2


def test_pbs_needs_a_command_to_queue_the_continuation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_JOBID", "1.server")
    with pytest.raises(ConfigError, match="PBS lets no user"):
        continuation(resubmit=True, command=None)
    again = continuation(resubmit=False, command="echo 12; echo \"$0\" >there'x'")
    assert again
    assert again() == "queued again: 12"
    assert (folder / "therex").exists()
    assert continuation(resubmit=False, command=None) is None


# ------------------------------------------------------------------------------------------- what is told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_and_a_log_one_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    now = [100.0]
    for stream, expected in (
        (Terminal(), "\r" + "0123456789 123456789" [:19] + "\r" + "short".ljust(19) + "\r     \rsaid\n"),
        (io.StringIO(), None),
    ):  # fmt: skip
        with Live(stream, lambda: now[0]) as live:
            live.show("0123456789 123456789 and more")
            live.show("too soon")
            now[0] += live.seconds
            live.show("short")
            live.say("said")
        if expected is not None:
            assert stream.getvalue() == expected
        else:
            first, second = stream.getvalue().splitlines()
            assert (first[8:], second) == (" short", "said")


def test_nobody_who_listens_is_no_reason_to_stop() -> None:
    stream = io.StringIO()
    live = Live(stream)
    stream.close()
    live.say("x")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999.4, "999"), (999.6, "1.0k"), (12345, "12.3k"), (999_960, "1.0M"), (123_456_789, "123M"), (2e15, "2000T")],
)  # fmt: skip
def test_counts_are_short(number: float, text: str) -> None:
    assert count_text(number) == text


@given(st.floats(0, 9e15))
def test_no_count_is_long(number: float) -> None:
    assert len(count_text(number)) <= 5


def test_times_pass() -> None:
    assert [clock_text(each) for each in (0.4, 59.6, 3599, 3600, 90061)] == [
        *("0:00", "1:00", "59:59", "1:00:00", "1d 01:01")
    ]


def test_progress_is_one_line() -> None:
    assert progress_line(Progress(**NOW), "unseen") == (
        "5,000 of 20,000 rows (25 %), 612/s, 0:24 left, tokens/s: 12.3k in, 1.0k out, 3 failed, "
        "128 under way on 2 instances"
    )
    silent = {
        **NOW,
        "rate": None,
        "eta": None,
        "prompt_rate": 0,
        "completion_rate": 0,
        "instances": 0,
        "failed": 0,
    }
    assert progress_line(Progress(**silent), "no registry") == (
        "5,000 of 20,000 rows (25 %), 128 under way on 0 instances, no registry"
    )


def test_the_summary_tells_this_run_from_the_whole() -> None:
    told = Told(output="o", rows=10, done=8, failed=2, left=2, errors={"timeout": 1})
    told.answered, told.seconds, told.prompt_tokens = 4, 2.0, 1500
    assert summary_line(told) == (
        "10 rows: 6 answered, 2 failed (1 timeout), 2 left; 4 of them in 0:02 (2.0/s); tokens: 1.5k in, 0 out"
    )
    assert json.loads(json.dumps(told.as_dict()))["errors"] == {"timeout": 1}
