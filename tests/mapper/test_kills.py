"""Runs that are killed at any moment, as often as it takes: the output is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from aegis.mapper.journal import journal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Sim

pytestmark = pytest.mark.lab

ROWS = 600
SIM = ("--ttft-ms", "60", "--max-num-seqs", "16", "--max-model-len", "64")


def line(number: int) -> dict[str, Any]:
    """Embeddings tell whose they are; every 50th row is too long."""
    text = f"row {number}" + " and so on" * (30 if number % 50 == 49 else 1)
    body = {"model": "m", "input": text, "dimensions": 8}
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/embeddings", "body": body}


def start(source: Path, output: Path, sims: list[Sim]) -> subprocess.Popen[bytes]:
    ports = [str(sim.port) for sim in sims]
    argv = [sys.executable, "-m", "tests.mapper.driver", str(source), str(output), "batch", *ports]
    return subprocess.Popen(argv, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> int:
    _, told = process.communicate(timeout=60)
    assert told == b""
    return process.returncode


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_after(process: subprocess.Popen[bytes], journal: Path, grown: int) -> None:
    """Kill it as soon as its journal has grown by so many bytes, unless it is done before."""
    enough = size(journal) + grown
    while process.poll() is None and size(journal) < enough:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)


def comparable(output: Path) -> list[Any]:
    """The output without what no two answers share."""
    lines = [json.loads(each) for each in output.read_text().splitlines()]
    for each in lines:
        if each["response"]:
            each["response"]["body"] |= {"id": each["response"].pop("request_id") and "", "created": 0}
    return lines


@pytest.mark.parametrize("seed", range(2))
def test_killed_drivers_and_servers_leave_no_trace_in_the_output(
    sim: Callable[..., Sim], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    source, calm, torn = tmp_path / "in.jsonl", tmp_path / "calm.jsonl", tmp_path / "torn.jsonl"
    source.write_text("".join(json.dumps(line(number)) + "\n" for number in range(ROWS)))
    sims = [sim(*SIM), sim(*SIM)]
    assert ended(start(source, calm, sims)) == 0

    whole = sum(len(each) for each in calm.read_bytes().splitlines())
    kills = 0
    while not torn.exists():
        process = start(source, torn, sims)
        if kills == 2:  # a server dies as well; the next one has another port
            sims[0].process.kill()
        kill_after(process, journal_of(torn), chance.randrange(whole // 3))
        if kills == 2:
            sims[0] = sim(*SIM)
        kills += ended(process) == -signal.SIGKILL
    assert kills >= 3
    assert ended(start(source, torn, sims)) == 0  # a kill may have met the last steps

    assert comparable(torn) == comparable(calm)
    found = comparable(torn)
    assert [each["custom_id"] for each in found] == [f"c{number}" for number in range(ROWS)]
    long = [each["custom_id"] for each in found if each["error"]]
    assert long == [f"c{number}" for number in range(49, ROWS, 50)]
    assert {each["error"]["code"] for each in found if each["error"]} == {"context_length_exceeded"}
    assert not journal_of(torn).with_name(f".{torn.name}.part").exists()
