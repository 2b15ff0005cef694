"""A plan that is rehearsed: simulated servers with its step times, loaded as it says."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import pytest

from aegis.planner.emit import save
from aegis.planner.plan import plan
from aegis.spec.step_times import StepTimes
from tests.ports import free_port

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.answer import Candidate
    from aegis.planner.plan import Plan

    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
ISL, OSL = 1000, 250
GPUS = 4
SCALE = 2.0  # of all times: what this machine takes itself is then a small part of a step
WARM, MEASURED = 1, 2  # rounds: in each, every place of the batch serves a request
NEAR = 0.05


class Served(NamedTuple):
    """When the tokens of a request were there, in s."""

    first: float
    last: float


@pytest.fixture(scope="module")
def answered() -> Plan:
    """A question whose answer has a batch of a size that this machine can serve."""
    return plan("QWEN3_32B", GPUS, "h200_sxm", backend="vllm", isl=ISL, osl=OSL, tpot=14)


def aggregated(answered: Plan) -> Candidate:
    return next(each.best[0] for each in answered.answers if each.mode == "agg" and each.best)


async def one(session: aiohttp.ClientSession, url: str) -> Served:
    """Ask for an answer, and note when its first and its last token came."""
    body: dict[str, Any] = {"prompt": [7] * ISL, "max_tokens": OSL, "ignore_eos": True, "stream": True}
    first = last = 0.0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for chunk in response.content.iter_any():
            if chunk.endswith(b"data: [DONE]\n\n") and chunk.startswith(b"data: [DONE]"):
                continue
            last = time.monotonic()
            first = first or last
    return Served(first, last)


async def load(url: str, concurrency: int) -> list[Served]:
    """Keep so many requests open until all rounds are served; in the order in which they ended."""
    served: list[Served] = []
    wanted = (WARM + MEASURED) * concurrency + 1

    async def client(session: aiohttp.ClientSession) -> None:
        while len(served) < wanted:
            served.append(await one(session, url))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
    return sorted(served[:wanted], key=lambda each: each.last)


def test_a_loaded_simulation_delivers_what_was_planned(answered: Plan, lab: Lab) -> None:
    chosen = aggregated(answered)
    (workers,) = chosen.workers
    folder = save(answered, lab.path / "plans", top_n=1)
    file = folder / "agg" / "top1" / "step_times.json"
    assert msgspec.json.decode(file.read_bytes(), type=StepTimes).groups == 1
    port = free_port()
    flags = ("--step-times", file, "--time-scale", SCALE, "--max-num-seqs", workers.batch)
    server = lab.start("sim", "m", "--port", port, *flags)
    wait_until(lambda: "pid " in lab.output(server).err)

    served = asyncio.run(load(f"http://127.0.0.1:{port}", chosen.concurrency))

    measured = served[WARM * chosen.concurrency :]
    tpot = sum(each.last - each.first for each in measured) / len(measured) / (OSL - 1) * 1000 / SCALE
    rounds = MEASURED * chosen.concurrency
    requests_per_s = rounds / (measured[rounds].last - measured[0].last) * SCALE
    said = f"batch {workers.batch}: TPOT {tpot:.2f} of {chosen.tpot:.2f} ms, "
    said += f"{requests_per_s:.3f} of {chosen.requests_per_s:.3f} requests/s"
    print(said)  # noqa: T201 - with `pytest -s`
    assert tpot == pytest.approx(chosen.tpot, rel=NEAR), said
    assert requests_per_s == pytest.approx(chosen.requests_per_s, rel=NEAR), said


def test_the_whole_deployment_is_rehearsed_on_one_machine(answered: Plan, lab: Lab) -> None:
    folder = save(answered, lab.path / "plans", top_n=1)
    file: Path = folder / "agg" / "top1" / "aegis-sim.yaml"
    chosen = aggregated(answered)
    answer = lab.aegis("submit", "--config", file, "--log-dir", "logs", "--wait", timeout=90)
    job: Job = lab.job(answer.err.partition("submitted ")[2].split()[0])
    assert len(job.endpoints) == chosen.replicas(GPUS)
    for endpoint in job.endpoints:
        assert "sim" in chat(endpoint, "Qwen/Qwen3-32B")["system_fingerprint"]
