"""`aegis map` as it is typed: a process against simulated servers, interrupted in every way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from aegis.mapper.journal import journal_of
from tests.engines.conftest import wait_until
from tests.mapper.test_kills import comparable, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.engines.conftest import Sim

pytestmark = pytest.mark.lab

ROWS = 400
FEW = 3000  # bytes: some rows of many
QUICK = ("--max-num-seqs", "8", "--ttft-ms", "40")
JOB_VARIABLES = ("SLURM_", "PBS_", "AEGIS_", "VLLM_API_KEY")


class Desk:
    """A user in a directory with servers, an endpoints file and rows."""

    def __init__(self, directory: Path, sim: Callable[..., Sim]) -> None:
        self.directory, self._sim = directory, sim
        self.out = directory / "out.jsonl"
        self.sims: list[Sim] = []
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(JOB_VARIABLES)
        }
        lines = [json.dumps({"text": f"row {number}"}) + "\n" for number in range(ROWS)]
        (directory / "rows.jsonl").write_text("".join(lines))

    def serve(self, count: int = 2, *flags: str) -> None:
        self.sims = [self._sim(*QUICK, *flags) for _ in range(count)]
        listed = "".join(f"127.0.0.1:{each.port}\n" for each in self.sims)
        (self.directory / "aegis_endpoints.txt").write_text(listed)

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "aegis", "map", *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ | more.pop("environ", {}),
            **more,
        )

    def map(self, *arguments: str, **more: Any) -> Ended:
        return Ended(self.start(*arguments, **more))

    def usual(self, *more: str, output: str = "out.jsonl") -> list[str]:
        """Embeddings tell whose they are."""
        return [
            "rows.jsonl", "--prompt", "{text}", "--kind", "embeddings", "--param", "dimensions=4", "--output", output, *more
        ]  # fmt: skip

    def under_way(self, *more: str, **given: Any) -> subprocess.Popen[str]:
        process = self.start(*self.usual(*more), **given)
        wait_until(lambda: size(journal_of(self.out)) > FEW or process.poll() is not None)
        return process

    @property
    def asked(self) -> int:
        return sum(int(each.metric("request_success_total")) for each in self.sims)


class Ended:
    """What a process left behind."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.out, self.err = process.communicate(timeout=60)
        self.code = process.returncode
        assert "Traceback" not in self.err

    @property
    def told(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def desk(tmp_path: Path, sim: Callable[..., Sim]) -> Desk:
    return Desk(tmp_path, sim)


def answers(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_become_answers_in_their_order_and_a_second_run_needs_no_server(desk: Desk) -> None:
    desk.serve()
    done = desk.map(*desk.usual("--json"))
    assert done.code == 0, done.err
    assert (done.told["rows"], done.told["done"], done.told["failed"], done.told["left"]) == (
        ROWS,
        ROWS,
        0,
        0,
    )
    assert done.told["prompt_tokens"] == 2 * ROWS
    found = answers(desk.out)
    assert [each["custom_id"] for each in found] == [str(number + 1) for number in range(ROWS)]
    assert all(each["response"]["body"]["usage"]["prompt_tokens"] == 2 for each in found)
    for each in desk.sims:
        each.end()
    before = desk.out.stat()
    again = desk.map(*desk.usual())
    assert (again.code, again.out) == (0, "")
    assert desk.out.stat() == before
    other = desk.map(*desk.usual("--model", "m"))
    assert other.code == 2
    assert "was begun with something else: parameters was" in other.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_good_order_and_the_same_command_continues(
    desk: Desk, number: signal.Signals
) -> None:
    desk.serve()
    process = desk.under_way("--concurrency", "4")
    process.send_signal(number)
    ended = Ended(process)
    assert ended.code == 7
    done = ROWS - int(ended.err.split("error: ")[1].split(" left; run the same command to continue")[0])
    assert 0 < done == desk.asked  # what was under way was waited for
    assert not desk.out.exists()
    assert desk.map(*desk.usual("--concurrency", "4")).code == 0
    assert desk.asked == ROWS
    assert desk.map(*desk.usual(output="calm.jsonl")).code == 0
    assert comparable(desk.out) == comparable(desk.directory / "calm.jsonl")


def test_a_second_ctrl_c_ends_it_at_once(desk: Desk) -> None:
    desk.serve()
    process = desk.under_way()
    desk.sims[0].process.send_signal(signal.SIGSTOP)  # whose answers would be waited for
    desk.sims[1].process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # two signals at once are one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 6
    assert "interrupted; " in Ended(process).err
    for each in desk.sims:
        each.process.send_signal(signal.SIGCONT)
    assert desk.map(*desk.usual()).code == 0


def test_the_end_of_the_job_is_known_and_the_continuation_queued(desk: Desk) -> None:
    desk.serve(1, "--ttft-ms", "200")
    tools = desk.directory / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {desk.directory}/asked\n')
    (tools / "scontrol").chmod(0o755)
    end = time.time() + 6
    job = {"SLURM_JOB_ID": "42", "SLURM_JOB_END_TIME": str(int(end)), "PATH": f"{tools}:{os.environ['PATH']}"}
    ended = desk.map(*desk.usual("--resubmit", "--json"), environ=job)
    assert ended.code == 7, ended.err
    assert time.time() < end
    assert "stops in time for the end of slurm://42" in ended.err
    assert (desk.directory / "asked").read_text() == "requeue 42\n"
    assert ended.told["resubmitted"] is True
    assert 0 < ended.told["left"] < ROWS
    short = desk.map(
        *desk.usual("--walltime", "00:00:01", "--resubmit-with", "echo 'it is' $((1 + 1)); exit 3")
    )
    assert short.code == 3
    assert "failed with exit code 3" in short.err


def test_a_full_disk_is_told_and_nothing_is_lost(desk: Desk) -> None:
    desk.serve()

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    full = desk.map(*desk.usual("--json"), preexec_fn=small)
    assert full.code == 1
    assert "is full" in full.err
    assert "run the same command to continue" in full.err
    assert full.told["error"]
    assert not desk.out.exists()
    asked = desk.asked
    assert desk.map(*desk.usual()).code == 0
    assert ROWS <= desk.asked <= ROWS + asked - 40  # 20,000 bytes hold more than 40 rows
    assert len(answers(desk.out)) == ROWS


def test_all_wrong_rows_are_told_and_nothing_is_sent(desk: Desk) -> None:
    desk.serve(1)
    name = "a $(touch pwned);'\"\n.csv"
    (desk.directory / name).write_bytes(b"x y,b\nx\ny,z,w\n\xff,a\ng,h\n")
    ended = desk.map(name, "--prompt", "{b}{x y}", "--output", "out.jsonl")
    assert ended.code == 2
    assert [f".csv:{number}: " in ended.err for number in range(2, 6)] == [True, True, True, False]
    assert desk.asked == 0
    assert not (desk.directory / "pwned").exists()


def test_hostile_names_and_texts_go_through_as_they_are(desk: Desk) -> None:
    desk.serve(1)
    column, name, output = "a 'b\" $(c)", "in $(touch pwned)\n;'.csv", "out $(touch pwned)\n;'\".jsonl"
    row = "text; $(touch pwned) `touch pwned` 'x' \"y\""
    (desk.directory / name).write_text(
        'id,"a \'b"" $(c)"\n"k ; $(x)",' + '"' + row.replace('"', '""') + '"\n'
    )
    ended = desk.map(
        name, "--prompt", f"$(touch pwned)\n{{{{{{{column}}}}}}}", "--id-column", "id", "--kind", "completions",
        "--param", "echo=true", "--output", output, "--json", "--max-tokens", "1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.told["output"] == output
    (found,) = answers(desk.directory / output)
    assert found["custom_id"] == "k ; $(x)"
    assert not (desk.directory / "pwned").exists()
    (desk.directory / "list").write_bytes(os.fsencode(name) + b"\0")
    assert desk.map("@list", "--prompt", f"{{{column}}}", "--output", "other.jsonl").code == 0


def test_a_key_is_needed_and_never_shown(desk: Desk) -> None:
    desk.serve(1, "--api-key", "sesame")
    began = time.monotonic()
    refused = desk.map(*desk.usual())
    assert refused.code == 3
    assert "HTTP 401" in refused.err
    assert time.monotonic() - began < 10
    key = desk.directory / "key"
    key.write_text("sesame\n")
    key.chmod(0o600)
    done = desk.map(*desk.usual("--api-key-file", "key", "--json"))
    assert done.code == 0, done.err
    written = desk.out.read_text() + journal_of(desk.out).read_text() + done.out + done.err
    assert "sesame" not in written


def test_a_model_that_nobody_serves_and_servers_that_are_not_there(desk: Desk) -> None:
    desk.serve(1)
    wrong = desk.map(*desk.usual("--model", "other"))
    assert wrong.code == 2
    assert "these are served: m" in wrong.err
    (desk.directory / "dead").write_text("127.0.0.1:1\n")
    dead = desk.map(*desk.usual("--endpoints-file", "dead"))
    assert dead.code == 3
    assert "no server answers: 127.0.0.1:1" in dead.err
    assert desk.map(*desk.usual()).code == 0  # what never began is in nobody's way


def test_when_all_servers_die_it_waits_and_leaves_the_rest(desk: Desk) -> None:
    desk.serve()
    process = desk.under_way("--patience", "1", "--tries", "100")
    for each in desk.sims:
        each.process.kill()
    ended = Ended(process)
    assert ended.code == 7
    assert "no answer for 1 s" in ended.err
    assert "left; run the same command to continue" in ended.err
    desk.serve()
    assert desk.map(*desk.usual()).code == 0
    assert len(answers(desk.out)) == ROWS
