"""Loads over several processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from aegis.bench.learn import learn_tokens
from aegis.bench.processes import run_load
from aegis.bench.prompts import Lengths, Tokens, random_prompts
from aegis.bench.work import Work, arrivals
from aegis.errors import AegisError, SiteError
from tests.bench.conftest import Sim, scripted, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.api.targets import Target

pytestmark = pytest.mark.lab

PROGRAM = """
import sys
from aegis.api.targets import Target
from aegis.bench.processes import run_load
from aegis.bench.prompts import Prompt
from aegis.bench.work import Work
prompts = (Prompt("a", 4),) * 4
work = Work(target=Target("127.0.0.1", int(sys.argv[1]), ("m",)), model="m", prompts=prompts, concurrency=4)
run_load([work], processes=2)
"""


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("open_loop", [False, True])
def test_every_request_is_measured_once(sim: Callable[..., Sim], processes: int, open_loop: bool) -> None:
    servers = [sim("--api-key", "secret", "--ttft-ms", "20") for _ in range(2 - open_loop)]
    works = [
        Work(
            target=target_of(server),
            model="m",
            prompts=random_prompts(9, Lengths(input=10, output=3), Tokens(), number),
            concurrency=0 if open_loop else 3,
            arrivals=arrivals(9, 100.0) if open_loop else (),
        )
        for number, server in enumerate(servers)
    ]
    found = run_load(works, processes=processes, api_key="secret")
    assert found.generator.processes == processes
    for outcome, server in zip(found.outcomes, servers, strict=True):
        records = outcome.records
        assert records.errors == ("",) * 9
        assert sorted(records.prompt) == list(range(9))
        assert len(records.itl) == sum(records.gaps) == 18
        assert found.began <= min(records.start)
        assert max(records.start + records.latency) <= outcome.ended
        assert server.metric("request_success_total") == 9


def test_processes_end_with_the_one_that_started_them(sim: Callable[..., Sim]) -> None:
    server = sim("--hang-after", "0")
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(server.port)])
    try:
        wait_until(server.running(4))
        children = children_of(parent.pid)
        assert len(children) == 2
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(alive(child) for child in children))


def test_a_process_that_is_killed_ends_the_load_with_an_error(sim: Callable[..., Sim]) -> None:
    server = sim("--hang-after", "0")
    prompts = random_prompts(4, Lengths(input=10, output=3), Tokens())
    work = Work(target=target_of(server), model="m", prompts=prompts, concurrency=4)

    def kill() -> None:
        wait_until(server.running(4))
        mine = [pid for pid in children_of(os.getpid()) if "aegis.bench.processes" in command_of(pid)]
        os.kill(mine[0], 9)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AegisError, match="ended early"):
        run_load([work], processes=2)
    killer.join()
    wait_until(server.running(0))


def test_the_tokens_of_words_are_learnt(sim: Callable[..., Sim]) -> None:
    target = target_of(sim())
    assert learn_tokens(target, "m") == Tokens(1.0, 0.0)
    found = learn_tokens(target, "m", chat=True)
    prompts = random_prompts(1, Lengths(input=100, output=1), found)
    measured = run_load([Work(target=target, model="m", prompts=prompts, concurrency=1, chat=True)])
    assert measured.outcomes[0].records.input_tokens[0] == 100


def test_a_server_that_teaches_nothing() -> None:
    async def address() -> Target:
        async with scripted(lambda *_: asyncio.sleep(0)) as target:
            return target

    with pytest.raises(SiteError, match="does not answer a first request"):
        learn_tokens(asyncio.run(address()), "m")


def alive(pid: int) -> bool:
    return bool(command_of(pid))


def command_of(pid: int) -> str:
    found = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
