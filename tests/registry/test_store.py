from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.registry.store import Store

from .conftest import Clock, push, report

if TYPE_CHECKING:
    from aegis.registry.model import Service


def ids(services: list[Service]) -> list[str]:
    return [service.service_id for service in services]


def test_a_push_is_the_whole_state_of_its_node(store: Store) -> None:
    store.apply(push("n1", report("a"), report("b")))
    store.apply(push("n2", report("c")))
    changes = store.apply(push("n1", report("b")))
    assert [(change.service.service_id, change.removed) for change in changes] == [("a", True)]
    assert ids(store.select()) == ["b", "c"]


def test_last_seen_is_the_registrys_time_minus_the_age(store: Store, clock: Clock) -> None:
    store.apply(push("n1", report("a", age=7.0)))
    service = store.get("a")
    assert service
    assert service.last_seen == clock.wall() - 7.0


def test_a_hung_instance_is_no_longer_healthy_though_its_agent_still_says_so(store: Store) -> None:
    store.apply(push("n1", report("a", age=29.0), report("b", age=30.0)))
    assert ids(store.healthy()) == ["a"]
    assert ids(store.healthy(timeout=31)) == ["a", "b"]


def test_services_of_a_silent_node_turn_unhealthy_and_later_go(store: Store, clock: Clock) -> None:
    store.apply(push("n1", report("a"), report("f", status="failed")))
    clock.now += 20
    store.apply(push("n2", report("b")))
    clock.now += 11
    assert [change.service.service_id for change in store.sweep()] == ["a"]
    service = store.get("a")
    assert service
    assert (service.status, service.metadata["reason"]) == ("unhealthy", "no word from its node for 31 s")
    assert [s.status for s in store.select(status="failed")] == ["failed"]
    assert store.sweep() == []
    clock.now += 269
    assert {c.service.service_id for c in store.sweep() if c.removed} == {"a", "f"}
    assert ids(store.select()) == ["b"]


def test_a_push_revives_a_silent_node(store: Store, clock: Clock) -> None:
    store.apply(push("n1", report("a")))
    clock.now += 40
    store.sweep()
    (change,) = store.apply(push("n1", report("a")))
    assert change.service.status == "healthy"
    assert "reason" not in change.service.metadata
    clock.now += 299
    assert not any(change.removed for change in store.sweep())


def test_starting_stays_starting(store: Store, clock: Clock) -> None:
    for _ in range(30):
        store.apply(push("n1", report("a", status="starting", age=0.0)))
        clock.now += 10
        store.sweep()
    assert ids(store.select(status="starting")) == ["a"]


def test_only_material_changes_raise_the_revision(store: Store, clock: Clock) -> None:
    store.apply(push("n1", report("a", metadata={"load": 1, "pid": 5})))
    before = store.revision
    clock.now += 5
    assert store.apply(push("n1", report("a", metadata={"load": 2, "pid": 5}))) == []
    assert store.revision == before
    service = store.get("a")
    assert service
    assert service.metadata["load"] == 2
    assert service.last_seen == clock.wall()
    assert store.apply(push("n1", report("a", metadata={"load": 2, "pid": 6})))
    assert store.revision == before + 1


@pytest.mark.parametrize(
    "change", [{"host": "x"}, {"port": 1}, {"service_type": "sim"}, {"status": "draining"}]
)
def test_every_key_is_material(store: Store, change: dict[str, object]) -> None:
    store.apply(push("n1", report("a")))
    assert len(store.apply(push("n1", report("a", **change)))) == 1


def test_filters(store: Store) -> None:
    store.apply(
        push(
            "n1",
            report("a", model="m"),
            report("b", model="m", service_type="sim"),
            report("c", model="k", status="starting"),
            report("d", metadata={"model": 7}),
        )
    )
    assert ids(store.select(model="m")) == ["a", "b"]
    assert ids(store.select(model="m", service_type="sim")) == ["b"]
    assert ids(store.select(service_type="vllm", status="starting")) == ["c"]
    assert store.select(model="nothing") == store.select(service_type="nothing") == []
    assert store.tally() == {("vllm", "healthy"): 2, ("sim", "healthy"): 1, ("vllm", "starting"): 1}


def test_watchers_get_what_changed_or_start_anew(store: Store) -> None:
    start = store.revision
    store.apply(push("n1", report("a"), report("b")))
    store.apply(push("n1", report("b", status="draining")))
    watched = store.changed_since(start)
    assert not watched.reset
    assert [s.status for s in watched.services] == ["draining"]
    assert watched.removed == ("a",)
    assert store.changed_since(watched.revision).services == ()
    for stranger in (None, start - 1, watched.revision + 1):
        again = store.changed_since(stranger)
        assert again.reset
        assert [s.service_id for s in again.services] == ["b"]


def test_a_history_that_is_too_short_resets(store: Store) -> None:
    start = store.revision
    store.apply(push("n1", *(report(str(number)) for number in range(51))))
    assert store.changed_since(start).reset
    assert not store.changed_since(start + 1).reset


def test_a_drain_wish_is_repeated_until_the_agent_reports_it(store: Store) -> None:
    store.apply(push("n1", report("a"), report("b")))
    assert store.drain("a")
    assert not store.drain("nobody")
    for _ in range(2):  # the first answer may have been lost
        store.apply(push("n1", report("a"), report("b")))
        assert store.acknowledge("n1").drain == ("a",)
    assert store.acknowledge("n2").drain == ()
    store.apply(push("n1", report("a", status="draining"), report("b")))
    assert store.acknowledge("n1").drain == ()


def test_stop_reaches_every_node_and_watcher_once(store: Store) -> None:
    before = store.revision
    store.stop()
    store.stop()
    assert store.acknowledge("anybody").stop
    assert store.revision == before + 1
    assert store.changed_since(before).stop


def test_members_of_an_instance_learn_its_newest_generation(store: Store) -> None:
    def member(rank: int, generation: object, **more: object) -> dict[str, object]:
        return {"instance": "m/0", "rank": rank, "generation": generation, "members": 2} | more

    store.apply(push("n1", report("a", metadata=member(0, 1))))
    store.apply(push("n2", report("b", metadata=member(1, 3))))
    store.apply(
        push("n3", report("c", metadata=member(0, 9, members=1)), report("d", metadata=member(0, "9")))
    )
    assert store.acknowledge("n1").generations == store.acknowledge("n2").generations == {"m/0": 3}
    assert store.acknowledge("n3").generations == {}
    store.apply(push("n2"))
    assert store.acknowledge("n1").generations == {"m/0": 1}


def test_a_service_that_moves_belongs_to_its_new_node(store: Store) -> None:
    store.apply(push("n1", report("a")))
    store.apply(push("n2", report("a")))
    assert store.apply(push("n1")) == []
    assert store.get("a")


def test_a_removed_service_comes_back_with_the_next_push(store: Store) -> None:
    store.apply(push("n1", report("a")))
    change = store.remove("a")
    assert change
    assert change.removed
    assert store.remove("a") is None
    store.apply(push("n1", report("a")))
    assert store.get("a")


def test_restored_services_are_known_but_not_healthy_until_announced(clock: Clock) -> None:
    def fresh() -> Store:
        return Store(wall=clock.wall, monotonic=clock.monotonic)

    changes = fresh().apply(push("n1", report("a")))
    clock.now += 100
    store = fresh()
    store.restore(changes)
    assert ids(store.select()) == ["a"]
    assert store.healthy() == []
    clock.now += 29
    assert store.sweep() == []
    clock.now += 1
    assert [change.service.status for change in store.sweep()] == ["unhealthy"]
