"""What is shown of a fleet: jobs, nodes, instances, models, runs, errors, and what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.registry.overview.change import KEYS, difference
from aegis.registry.overview.fleet import ERRORS, MEMORY_SECONDS, Fleet
from aegis.registry.overview.model import Overview, Point
from tests.registry.conftest import push, report
from tests.web.fleets import Site, job, map_run

if TYPE_CHECKING:
    from aegis.registry.store import Store
    from tests.registry.conftest import Clock


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store)


def failing(service_id: str, reason: str, status: str = "failed", **more: Any) -> Any:
    return report(service_id, status=status, model="m", metadata={"reason": reason, **more})


def test_an_empty_registry_has_an_overview(fleet: Fleet) -> None:
    overview = fleet.overview()
    assert overview == Overview(time=overview.time, version=overview.version)
    assert msgspec.json.decode(msgspec.json.encode(overview), type=Overview) == overview


def test_everything_that_was_told_is_there(fleet: Fleet, store: Store, clock: Clock) -> None:
    site = Site(6, 4, ("org/a", "org/b"), clock.wall())
    for _ in range(3):
        for node in range(site.nodes):
            store.apply(site.push(node, clock.now))
        clock.now += 10.0
        fleet.tick()
    store.apply(job(clock.wall(), predecessor="slurm://1"))
    store.apply(map_run(500))
    overview = fleet.overview()
    assert [each.handle for each in overview.jobs] == ["slurm://4711203"]
    assert overview.jobs[0].predecessor == "slurm://1"
    assert overview.jobs[0].gateways == ("10.0.0.1:8080",)
    assert [(each.name, len(each.instances)) for each in overview.nodes] == [
        ("nid001001", 4),
        ("nid001002", 2),
    ]
    assert {each.id for each in overview.instances} == {f"a-{n}" for n in range(3)} | {
        f"b-{n}" for n in range(3, 6)
    }
    assert [(run.done, run.total, run.failed) for run in overview.maps] == [(500, 120_000, 12)]
    a = overview.models[0]
    assert (a.name, a.instances, a.statuses) == ("org/a", 3, {"healthy": 3})
    assert len(a.history) == 3
    loads = [each.load for each in overview.instances if each.model == "org/a"]
    assert a.now.running == sum(load.running or 0.0 for load in loads) > 0
    assert a.now.generation_rate == pytest.approx(
        sum(load.generation_rate or 0.0 for load in loads), rel=1e-3
    )
    assert a.now.first_token
    assert a.now.first_token.p50 < a.now.first_token.p90 <= a.now.first_token.p99
    again = msgspec.json.decode(msgspec.json.encode(overview), type=Overview)
    assert again == overview


def test_a_member_of_an_instance_counts_for_none(fleet: Fleet, store: Store) -> None:
    head = report("m-0", model="m", metadata={"rank": 0, "members": 2, "generation": 1, "instance": "m-0"})
    other = report(
        "m-0.rank1", port=0, model="m", metadata={"rank": 1, "members": 2, "generation": 1, "instance": "m-0"}
    )
    store.apply(push("n", head, other))
    overview = fleet.overview()
    assert overview.models[0].instances == 1
    assert [each.rank for each in overview.instances] == [0, 1]


def test_a_silent_server_has_no_load(fleet: Fleet, store: Store, clock: Clock) -> None:
    store.apply(push("n", report("m-0", model="m", metadata={"load": {"at": 1.0, "running": 5.0}})))
    assert fleet.overview().models[0].now.running == 5.0
    clock.now += 31.0
    assert fleet.overview().models[0].now.running is None


def test_a_load_without_the_time_of_its_look_is_none(fleet: Fleet, store: Store) -> None:
    store.apply(push("n", report("m-0", model="m", metadata={"load": {"running": 5.0}})))
    assert fleet.overview().instances[0].load.running is None


def test_errors_are_told_once_with_their_last_lines(fleet: Fleet, store: Store) -> None:
    store.apply(push("n", report("m-0", status="starting", model="m", metadata={"reason": "starting"})))
    assert not fleet.overview().errors
    again = {"tail": ["a", "b"], "restarts": 0}
    store.apply(push("n", failing("m-0", "exited with code 1; next start in 1 s", "starting", **again)))
    store.apply(push("n", failing("m-0", "exited with code 1; next start in 2 s", "starting", **again)))
    store.apply(push("n", failing("m-0", "exited with code 1", "failed", tail=["z"])))
    errors = fleet.overview().errors
    assert [(error.number, error.status, error.tail) for error in errors] == [
        (1, "starting", ("a", "b")),
        (2, "failed", ("z",)),
    ]
    store.apply(push("n", report("m-0", model="m")))
    store.apply(push("n", failing("m-0", "exited with code 1", "failed")))
    assert [error.number for error in fleet.overview().errors] == [1, 2, 3]


def test_a_silent_node_is_an_error_and_only_so_many_are_kept(
    fleet: Fleet, store: Store, clock: Clock
) -> None:
    store.apply(push("n", *(report(f"m-{number}", model="m") for number in range(ERRORS + 10))))
    clock.now += 40.0
    store.sweep()
    errors = fleet.overview().errors
    assert len(errors) == ERRORS
    assert errors[-1].number == ERRORS + 10
    assert "no word from its node" in errors[0].text


def test_a_model_that_is_gone_is_forgotten_after_a_while(fleet: Fleet, store: Store, clock: Clock) -> None:
    store.apply(push("n", report("m-0", model="m")))
    fleet.tick()
    store.apply(push("n"))
    fleet.tick()
    assert [(model.name, model.instances) for model in fleet.overview().models] == [("m", 0)]
    clock.now += MEMORY_SECONDS + 1.0
    fleet.tick()
    assert not fleet.overview().models
    assert not fleet._meters
    assert not fleet._shown


HOSTILE: list[Any] = [
    None,
    7,
    1e308,
    True,
    "x",
    "<b>",
    ["a", 1],
    {"a": "b"},
    {"at": "x"},
    {"at": 1, "first_token": {"buckets": {"x": "y"}}},
]


@pytest.mark.parametrize("value", HOSTILE)
def test_metadata_may_be_anything(fleet: Fleet, store: Store, value: Any) -> None:
    names: tuple[str, ...] = (
        "model",
        "job",
        "node",
        "rank",
        "since",
        "restarts",
        "reason",
        "devices",
        "load",
        "tail",
        "pid",
    )
    names += (
        "handle",
        "name",
        "service",
        "state",
        "gateways",
        "walltime_end",
        "rows",
        "done",
        "rate",
        "text",
    )
    reports = [
        report(f"s-{kind}-{status}", service_type=kind, status=status, metadata=dict.fromkeys(names, value))
        for kind in ("vllm", "job", "map", "gateway")
        for status in ("healthy", "failed")
    ]
    for _ in range(2):
        store.apply(push("n", *reports))
        fleet.tick()
    overview = fleet.overview()
    assert msgspec.json.decode(msgspec.json.encode(overview), type=Overview) == overview


# ------------------------------------------------------------------------------------------- what changed


def applied(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a reader makes it of the one before, in plain JSON."""
    found = {**state, "time": change["time"], "errors": [*state["errors"], *change["errors"]][-ERRORS:]}
    for name, key in KEYS.items():
        known = {each[key]: each for each in state[name]}
        for each, fields in change[name].items():
            if fields is None:
                del known[each]
            else:
                known[each] = {**known.get(each, {"history": []} if name == "models" else {}), **fields}
        found[name] = list(known.values())
    for model in found["models"]:
        model["history"] = [*model["history"], *change["points"].get(model["name"], [])]
    return found


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def by_key(state: dict[str, Any]) -> dict[str, Any]:
    return {name: {each[key]: each for each in state[name]} for name, key in KEYS.items()} | {
        "errors": state["errors"]
    }


def test_who_applies_every_change_knows_the_state(fleet: Fleet, store: Store, clock: Clock) -> None:
    site = Site(8, 4, ("a", "b"), clock.wall())
    old = fleet.overview()
    known = plain(old)
    for turn in range(30):
        if turn == 5:
            site.changes[2] = {"status": "failed", "reason": "gone", "tail": ["x"]}
        if turn == 9:
            site.changes.clear()
        if turn == 12:
            store.apply(push("nid001002"))
        elif turn < 12 or turn > 20:
            store.apply(site.push(turn % 2, clock.now))
        if turn % 3 == 0:
            store.apply(job(clock.wall(), nodes=turn // 10))
        clock.now += 5.0
        store.sweep()
        fleet.tick()
        new = fleet.overview()
        change = difference(old, new)
        assert change
        known = applied(known, plain(change))
        assert by_key(known) == by_key(plain(new))
        old = new


def test_what_stays_as_it_is_is_not_told(fleet: Fleet, store: Store, clock: Clock) -> None:
    store.apply(push("n", report("m-0", model="m", metadata={"load": {"at": 1.0, "running": 5.0}})))
    before = fleet.overview()
    clock.now += 1.0
    assert difference(before, fleet.overview()) is None
    fleet.tick()
    change = difference(before, fleet.overview())
    assert change
    assert (change.instances, list(change.points)) == ({}, ["m"])
    assert isinstance(change.points["m"][0], Point)
