"""The dashboard of a gateway: several registries as one."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from aegis.errors import NotFoundError, RegistryUnreachable
from aegis.gateway.overview import Together, add_overview, merged
from aegis.registry.overview.model import Error, Instance, Job, Model, Node, Overview, Point, Quantiles

if TYPE_CHECKING:
    from collections.abc import Sequence


class Registry:
    """Answers a state, or does not."""

    def __init__(self, url: str, state: Overview) -> None:
        self.url, self.state = url, state
        self.is_away = False
        self.hangs: threading.Event | None = None

    def overview(self) -> Overview:
        if self.hangs:
            self.hangs.wait(30)
        if self.is_away:
            raise RegistryUnreachable(f"the registry at {self.url} is away")
        return self.state

    def log(self, service_id: str, lines: int) -> str:
        if service_id != "m-0":
            raise NotFoundError("no log of it")
        return f"{self.url} {service_id} {lines}"


class Sources:
    def __init__(self, registries: Sequence[Registry]) -> None:
        self.registries = registries


def state(job: str, first: float, points: int, running: float) -> Overview:
    times = [first + 5.0 * number for number in range(points)]
    quantiles = Quantiles(count=running, p50=running, p90=running, p99=running)
    history = tuple(Point(time=time, healthy=1, running=running, first_token=quantiles) for time in times)
    return Overview(
        time=times[-1],
        version="x",
        jobs=(Job(handle=job),),
        models=(Model(name="m", instances=1, statuses={"healthy": 1}, now=history[-1], history=history),),
        instances=(Instance(id="m-0", model="m", job=job, status="healthy"),),
        nodes=(Node(name="n", seen=1.0, instances=("m-0",)),),
        errors=(Error(number=1, time=first, instance="m-0", text="e"),),
    )


ONE = state("slurm://1", 0.0, 20, 3.0)
TWO = state("slurm://2", 50.5, 12, 1.0)


def test_one_registry_is_passed_on_as_it_is() -> None:
    found = merged([ONE], (), 7.0)
    assert (found.instances, found.models, found.jobs) == (ONE.instances, ONE.models, ONE.jobs)


def test_the_figures_of_a_model_in_two_registries_are_summed() -> None:
    (model,) = merged([ONE, TWO], (), 7.0).models
    assert (model.instances, model.statuses, model.now.running) == (2, {"healthy": 2}, 4.0)
    times = [point.time for point in model.history]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0.0, TWO.models[0].history[-1].time)
    assert [point.running for point in model.history] == [3.0] * 11 + [4.0] * 12
    last = model.history[-1].first_token
    assert last
    assert (last.count, last.p50) == (4.0, 2.5)


def test_errors_have_rising_numbers() -> None:
    numbers = [error.number for error in merged([ONE, TWO, ONE], (), 7.0).errors]
    assert numbers == sorted(set(numbers))


def test_names_of_two_jobs_are_told_apart_and_logs_found() -> None:
    async def work() -> None:
        together = Together(Sources([Registry("http://a:1", ONE), Registry("http://b:2", TWO)]), logs=True)
        found = await together.overview()
        assert [each.id for each in found.instances] == ["slurm://1/m-0", "slurm://2/m-0"]
        assert [each.instances for each in found.nodes] == [("slurm://1/m-0",), ("slurm://2/m-0",)]
        assert await together.log("slurm://2/m-0", 5) == "http://b:2 m-0 5"
        with pytest.raises(web.HTTPNotFound):
            await together.log("slurm://3/m-0", 5)

    asyncio.run(work())


def test_a_registry_that_is_away_is_shown_as_it_was_and_one_that_ended_is_not() -> None:
    async def work() -> None:
        one, two = Registry("http://a:1", ONE), Registry("http://b:2", TWO)
        sources = Sources([one, two])
        together = Together(sources)
        await together.overview()
        one.is_away = True
        found = await together.overview()
        assert len(found.instances) == 2
        assert found.problems == ("the registry at http://a:1 is away",)
        sources.registries = [two]
        found = await together.overview()
        assert [each.id for each in found.instances] == ["m-0"]
        assert found.problems == ()

    asyncio.run(work())


def test_a_registry_that_hangs_is_asked_once_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis.gateway.overview.ASK_SECONDS", 0.05)

    async def work() -> None:
        one, two = Registry("http://a:1", ONE), Registry("http://b:2", TWO)
        one.hangs = threading.Event()
        together = Together(Sources([one, two]))
        for _ in range(3):
            found = await together.overview()
            assert [each.handle for each in found.jobs] == ["slurm://2"]
            assert "does not answer" in found.problems[0]
        assert sum(thread.name.startswith("asyncio_") for thread in threading.enumerate()) <= 4
        one.hangs.set()
        monkeypatch.setattr("aegis.gateway.overview.ASK_SECONDS", 30.0)
        assert not (await together.overview()).problems

    asyncio.run(work())


def test_logs_are_not_for_everybody() -> None:
    async def work() -> None:
        together = Together(Sources([Registry("http://a:1", ONE)]))
        await together.overview()
        with pytest.raises(web.HTTPNotFound) as refused:
            await together.log("m-0", 5)
        assert "without keys" in (refused.value.text or "")

    asyncio.run(work())


def test_the_routes_at_a_gateway() -> None:
    async def work() -> None:
        app = web.Application()
        add_overview(app, Sources([Registry("http://a:1", ONE)]), logs=True)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get("/overview")
            assert msgspec.json.decode(await answer.read(), type=Overview).jobs == ONE.jobs
            assert (await client.get("/ui")).status == 200
            assert await (await client.get("/ui/log?service=m-0&lines=3")).text() == "http://a:1 m-0 3"
            assert (await client.get("/ui/log?service=m-9")).status == 404
            async with client.get("/ui/events") as events:
                assert (await events.content.readline()) == b"event: state\n"

    asyncio.run(work())
