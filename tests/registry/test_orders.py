"""Orders for nodes, and wishes for the head of a job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import UNSET, Raw

from aegis.errors import ConfigError, NotFoundError, SiteError
from aegis.registry.model import Granted, Orders, Wish
from aegis.registry.store import WISHES, Store

from .conftest import Clock, Site, push, report, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.registry.model import Acknowledgement


def order(store: Store, node: str, version: int, text: bytes = b"{}") -> None:
    store.order(Orders(node=node, version=version, instances=()), Raw(text))


def say(store: Store, node: str, version: int, *names: str) -> Acknowledgement:
    store.apply(msgspec.structs.replace(push(node, *map(report, names)), version=version))
    return store.acknowledge(node)


# Orders


def test_orders_are_repeated_until_the_agent_follows_them(store: Store) -> None:
    assert say(store, "n1", 0).orders is UNSET
    order(store, "n1", 3, b'{"a":1}')
    assert bytes(say(store, "n1", 0).orders or b"") == b'{"a":1}'
    assert bytes(say(store, "n1", 2).orders or b"") == b'{"a":1}'
    assert say(store, "n1", 3).orders is UNSET
    assert say(store, "n1", 4).orders is UNSET
    assert say(store, "n2", 0).orders is UNSET
    assert (
        bytes(say(store, "n1", 0).orders or b"") == b'{"a":1}'
    )  # an agent that was started again from an old file


def test_older_orders_do_not_replace_newer_ones(store: Store) -> None:
    order(store, "n1", 3, b"3")
    order(store, "n1", 2, b"2")
    assert bytes(say(store, "n1", 0).orders or b"") == b"3"
    order(store, "n1", 3, b"4")  # posted again, after a restart of the registry
    assert bytes(say(store, "n1", 0).orders or b"") == b"4"


def test_a_node_that_was_given_up_and_returns_does_not_take_its_services_back(store: Store) -> None:
    say(store, "n1", 0, "a", "b")
    order(store, "n1", 1)
    say(store, "n2", 1, "a")  # moved
    moved = store.get("a")
    answer = say(store, "n1", 0, "a", "b")
    assert answer.orders is not UNSET
    assert store.get("a") == moved
    assert store.get("b")
    say(store, "n1", 1)
    assert store.get("a") == moved
    assert store.get("b") is None


def test_nodes_are_listed_while_they_are_remembered(store: Store, clock: Clock) -> None:
    say(store, "n1", 2, "a")
    clock.now += 5
    say(store, "n2", 0)
    clock.now += 40
    store.sweep()
    assert {(each.node, each.age, each.version) for each in store.nodes()} == {
        ("n1", 45.0, 2),
        ("n2", 40.0, 0),
    }
    clock.now += 300
    store.sweep()
    assert store.nodes() == []


# Wishes


def test_a_wish_wakes_who_watches_and_is_told_until_it_is_answered(store: Store) -> None:
    before = store.changed_since(None)
    assert before.wishes is UNSET
    asked = store.wish(Wish(model="m", instances=2))
    seen = store.changed_since(before.revision)
    assert seen.revision > before.revision
    assert (seen.wishes, seen.services, seen.reset) == ((asked,), (), False)
    assert store.changed_since(seen.revision).wishes == (asked,)
    answer = Granted(starting=("m-1",))
    assert store.answer(asked.id, answer)
    assert store.changed_since(None).wishes is UNSET
    known = store.asked(asked.id)
    assert known
    assert known.answer == answer
    assert store.answer("7", answer) is None
    assert store.asked("7") is None


def test_old_wishes_are_forgotten(store: Store) -> None:
    first = store.wish(Wish(model="m", instances=1))
    for _ in range(WISHES):
        store.wish(Wish(model="m", instances=1))
    assert store.asked(first.id) is None


# Over HTTP


@pytest.fixture
def guarded(store: Store, clock: Clock) -> Iterator[Site]:
    with running(store, clock, token="t0k") as site:
        yield site


def test_orders_and_wishes_over_http(site: Site) -> None:
    client = site.client()
    body = {"node": "a/b c", "version": 1, "instances": [{"id": "m-0"}], "more": "kept"}
    client.order("a/b c", json.dumps(body).encode())
    answer = client.push(push("a/b c", report("x")))
    assert json.loads(bytes(answer.orders or b"")) == body
    assert [(each.node, each.version) for each in client.nodes()] == [("a/b c", 0)]
    asked = client.wish(Wish(model="m", instances=0, force=True))
    assert client.watch(None, 0.1).wishes == (asked,)
    client.answer(asked.id, Granted(problem="no", hint="so"))
    done = client.asked(asked.id)
    assert done.wish == asked.wish
    assert done.answer == Granted(problem="no", hint="so")
    with pytest.raises(NotFoundError):
        client.asked("1")
    with pytest.raises(NotFoundError):
        client.answer("1", Granted())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/nodes/n/orders", {"node": "m", "version": 1, "instances": []}),
        ("PUT", "/nodes/n/orders", {"node": "n", "version": 0, "instances": []}),
        ("PUT", "/nodes/n/orders", {"node": "n", "version": 1}),
        ("PUT", "/nodes/n/orders", []),
        ("POST", "/wishes", {"model": "", "instances": 1}),
        ("POST", "/wishes", {"model": "m", "instances": -1}),
        ("POST", "/wishes", {"model": "m", "instances": "2"}),
        ("PUT", "/wishes/1", {"starting": 3}),
        ("GET", "/nodes?a=b", None),
    ],
)
def test_what_cannot_be_meant_is_refused(site: Site, method: str, path: str, body: object) -> None:
    answer = site.ask(method, path, None if body is None else json.dumps(body).encode())
    assert answer.status == 400, answer.body
    assert json.loads(answer.body)["error"]


def test_writing_needs_the_token_and_reading_does_not(guarded: Site) -> None:
    stranger, owner = guarded.client(), guarded.client("t0k")
    for write in (
        lambda: stranger.order("n", b'{"node":"n","version":1,"instances":[]}'),
        lambda: stranger.wish(Wish(model="m", instances=1)),
        lambda: stranger.answer("1", Granted()),
    ):
        with pytest.raises(SiteError, match="token"):
            write()
    owner.order("n", b'{"node":"n","version":1,"instances":[]}')
    with pytest.raises(ConfigError, match="version"):
        owner.order("n", b'{"node":"n","instances":[]}')
    asked = owner.wish(Wish(model="m", instances=1))
    assert stranger.asked(asked.id) == asked
    assert stranger.nodes() == []
