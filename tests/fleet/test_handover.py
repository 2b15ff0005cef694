"""One job hands over to the next: through a real registry, in whatever order jobs appear, die and come back."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from aegis.errors import NotFoundError
from aegis.fleet.handover import Retirement, Takeover, by_model
from aegis.fleet.verdict import HANDING_OVER
from aegis.runs import Manifest
from aegis.schedulers.transport import Here
from tests.engines.conftest import sim
from tests.registry.conftest import clock, push, report, site, store, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.runs import JobState
    from tests.engines.conftest import Sim
    from tests.registry.conftest import Site

__all__ = ["clock", "sim", "site", "store"]

NEW, OLD, OTHER = "slurm://2", "slurm://1", "slurm://3"


class View(NamedTuple):
    model_status: str


class World:
    """Jobs as their manifests and their scheduler have them."""

    def __init__(self) -> None:
        self.manifests: dict[str, Manifest] = {}
        self.states: dict[str, str] = {}
        self.transport = Here({})

    def add(self, handle: str, state: JobState, url: str | None = None, **more: Any) -> Manifest:
        made = Manifest(
            job=handle, name="x", models=["m"], run_dir="/nowhere/x.1", state=state, registry_url=url, **more
        )
        self.manifests[handle], self.states[handle] = made, state
        return made

    def find(self, handle: str) -> Manifest:
        if handle not in self.manifests:
            raise NotFoundError(f"there is no job `{handle}`")
        return self.manifests[handle]

    def reload(self, manifest: Manifest) -> Manifest:
        return self.manifests[manifest.job]

    def views(self, manifests: list[Manifest], max_age: float = 0.0) -> list[View]:
        del max_age
        return [View(self.states[each.job]) for each in manifests]


@pytest.fixture
def world() -> World:
    return World()


def takeover(world: World, mine: int = 1) -> Takeover:
    manifest = world.add(NEW, "READY", predecessor=OLD)
    return Takeover(world, manifest, lambda: Counter({"m": mine}))  # type: ignore[arg-type]


def test_the_old_job_lets_go_before_the_new_one_takes_over(world: World, site: Site) -> None:
    world.add(OLD, "READY", site.url)
    each = takeover(world)
    each.step()
    assert not each.is_over
    assert site.client().watch().retire == NEW
    site.client().retire(NEW, done=True)
    each.step()
    assert (each.is_over, each.said) == (True, f"takes over from {OLD}: it hands over")


def test_a_job_that_would_serve_with_less_waits_for_the_end_of_the_old_one(world: World, site: Site) -> None:
    site.client().push(push("n", report("a", model="m"), report("b", model="m")))
    world.add(OLD, "READY", site.url)
    each = takeover(world, mine=1)
    each.step()
    assert not site.client().watch().retire
    world.add(OLD, "SHUTDOWN")
    each.step()
    assert each.is_over


@pytest.mark.parametrize("state", ["FAILED", "SHUTDOWN", "PENDING"])
def test_a_job_that_serves_no_more_is_taken_over_from_at_once(world: World, state: str) -> None:
    world.add(OLD, "READY", "http://127.0.0.1:9")
    world.states[OLD] = state
    each = takeover(world)
    each.step()
    assert each.is_over


def test_so_is_one_that_nobody_knows_any_more(world: World) -> None:
    each = takeover(world)
    each.step()
    assert each.is_over


def test_one_that_is_silent_but_lives_keeps_its_place(world: World) -> None:
    world.add(OLD, "READY", "http://127.0.0.1:9")
    each = takeover(world)
    assert each.step() >= 1
    assert not each.is_over


def test_a_second_successor_finds_out_that_it_is_not_needed(world: World, site: Site) -> None:
    world.add(OLD, "READY", site.url)
    world.add(OTHER, "READY")
    site.client().retire(OTHER, done=True)
    each = takeover(world)
    each.step()
    assert (each.rival, each.is_over) == (OTHER, False)


def test_also_after_the_old_job_has_ended(world: World) -> None:
    world.add(OTHER, "READY")
    world.add(OLD, "SHUTDOWN", successor=OTHER, reason=f"handed over to {OTHER}")
    each = takeover(world)
    each.step()
    assert each.rival == OTHER


def test_it_is_needed_where_the_first_successor_has_failed(world: World, site: Site) -> None:
    world.add(OLD, "READY", site.url)
    world.add(OTHER, "FAILED")
    site.client().retire(OTHER, done=True)
    each = takeover(world)
    each.step()
    each.step()
    assert (each.rival, each.is_over) == ("", True)


def test_a_retiring_job_waits_for_its_last_request(site: Site, sim: Callable[..., Sim]) -> None:
    server = sim("--ttft-ms", "1500")
    place = {"host": "127.0.0.1", "port": server.port, "model": "m"}
    client = site.client()
    client.push(push("n", report("a", **place), report("map", service_type="map", port=0)))
    stream = server.send("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 2})
    wait_until(server.running(1))
    retirement = Retirement(client, NEW, lambda: True, least=0.0)
    assert retirement.reason == f"{HANDING_OVER} {NEW}"
    wait_until(lambda: site.store.acknowledge("n").drain == ("a",))
    client.push(push("n", report("a", status="draining", **place)))
    assert client.retire(NEW).done
    assert not retirement.is_over
    assert stream.getresponse().status == 200
    answered = time.monotonic()
    wait_until(lambda: retirement.is_over)
    assert time.monotonic() - answered < 10
    stream.close()


def test_only_healthy_servers_of_models_count() -> None:
    from aegis.registry.store import Store  # noqa: PLC0415 - nothing else here needs one

    store = Store()
    store.apply(
        push(
            "n",
            report("a", model="m"),
            report("b", model="m", status="draining"),
            report("c", model="m", port=0),
            report("d", model="m", service_type="gateway"),
            report("e", model="other"),
        )
    )
    assert by_model(store.select()) == {"m": 1, "other": 1}


def test_a_wish_to_retire_needs_a_name(site: Site) -> None:
    for body in (b"", b"{}", b'{"successor": ""}', b'{"successor": 1}'):
        assert site.ask("POST", "/retire", body).status == 400
    assert not site.client().watch().retire
