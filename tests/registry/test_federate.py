"""Several registries seen as one: what is mirrored, what becomes of wishes, and of sources that fall silent or end."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from aegis.errors import ConfigError, NotFoundError, RegistryUnreachable
from aegis.registry import federate as module
from aegis.registry import sources as following
from aegis.registry.federate import Federation, Mirror
from aegis.registry.sources import Source, Way
from aegis.registry.store import Store
from tests.registry.conftest import Clock, Site, push, report, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.registry.client import RegistryClient

TOKEN = "t0ken"
HOSTILE = "a b", "$(x)", "a;b", "a\nb", "a'b", "a/b", "a%2Fb", "é"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.0)


@contextlib.contextmanager
def registry(**options: Any) -> Iterator[Site]:
    clock = Clock()
    with running(Store(wall=clock.wall, monotonic=clock.monotonic), clock, **options) as site:
        yield site


class Union(Struct):
    """Two registries, and one that shows both."""

    one: Site
    two: Site
    all: Site
    sources: list[Source[Way]]
    said: list[str]

    @property
    def client(self) -> RegistryClient:
        return self.all.client(TOKEN)

    def ids(self) -> list[str]:
        return sorted(each.service_id for each in self.all.client().services())

    def status(self, service_id: str) -> str:
        """How it is; nothing where it is not there, as for a moment while its source is replaced."""
        try:
            return self.client.get(service_id).status
        except NotFoundError:
            return ""


def source(name: str, site: Site) -> Source[Way]:
    return Source(name=name, at=site.url, open=lambda: contextlib.nullcontext(Way(site.client(TOKEN))))


@contextlib.contextmanager
def federated(sources: list[Source[Way]], said: list[str], token: str | None = TOKEN) -> Iterator[Site]:
    federation = Federation(lambda: list(sources), said.append, pause=0.02)
    with registry(token=token, federation=federation) as site:
        yield site


@pytest.fixture
def union() -> Iterator[Union]:
    with registry(token=TOKEN) as one, registry(token=TOKEN) as two:
        one.client(TOKEN).push(
            push("n1", report("m-0", model="m", metadata={"node": "n1", "instance": "m-0"}))
        )
        two.client(TOKEN).push(push("n1", report("m-0", model="m", host="h2")))
        sources, said = [source("11", one), source("12", two)], list[str]()
        with federated(sources, said) as all_:
            made = Union(one, two, all_, sources, said)
            wait_until(lambda: len(made.ids()) == 2)
            yield made


def test_services_of_both_are_there(union: Union) -> None:
    assert union.ids() == ["11/m-0", "12/m-0"]
    found = union.client.get("11/m-0")
    assert (found.host, found.port, found.status) == ("h", 8000, "healthy")
    assert found.metadata == {"model": "m", "node": "11/n1", "instance": "11/m-0"}
    assert len(union.client.healthy(model="m")) == 2
    assert union.all.ask("GET", f"/services/{quote('12/m-0', safe='')}").status == 200


def test_changes_arrive_and_what_is_pushed_here_stays(union: Union) -> None:
    union.client.push(push("mine", report("map-1", service_type="map", port=0)))
    union.one.client(TOKEN).push(push("n1", report("m-0", status="draining"), report("m-1")))
    wait_until(lambda: union.ids() == ["11/m-0", "11/m-1", "12/m-0", "map-1"])
    assert union.status("11/m-0") == "draining"
    assert union.client.delete("map-1").service_id == "map-1"


@pytest.mark.parametrize("name", HOSTILE)
def test_any_id_finds_its_way(union: Union, name: str) -> None:
    union.one.client(TOKEN).push(push("n1", report(name)))
    wait_until(lambda: f"11/{name}" in union.ids())
    assert union.client.get(f"11/{name}").service_id == f"11/{name}"
    assert union.client.drain(f"11/{name}").service_id == f"11/{name}"
    assert union.one.store.acknowledge("n1").drain == (name,)


def test_wishes_go_to_where_a_service_comes_from(union: Union) -> None:
    assert union.client.drain("11/m-0").service_id == "11/m-0"
    assert union.one.store.acknowledge("n1").drain == ("m-0",)
    assert union.two.store.acknowledge("n1").drain == ()
    union.client.delete("12/m-0")
    wait_until(lambda: union.ids() == ["11/m-0"])
    assert union.two.store.get("m-0") is None
    for wish in (union.client.drain, union.client.delete):
        with pytest.raises(NotFoundError):
            wish("12/m-0")
        with pytest.raises(NotFoundError):
            wish("13/m-0")


def test_nobody_is_stopped_by_it(union: Union) -> None:
    with pytest.raises(ConfigError, match="shows several jobs, and ends, scales or replaces none of them"):
        union.client.stop()
    answer = union.all.ask("POST", "/stop", Authorization=f"Bearer {TOKEN}")
    assert answer.status == 409
    assert "shows several jobs" in json.loads(answer.body)["error"]
    assert union.all.ask("POST", "/stop").status == 401
    assert not union.one.client().watch(None).stop


def test_a_registry_that_asks_nobody_for_a_token_takes_no_wishes_there(union: Union) -> None:
    with federated(union.sources, []) as _, federated(union.sources, [], token=None) as open_to_all:
        client = open_to_all.client()
        wait_until(lambda: len(client.services()) == 2)
        with pytest.raises(ConfigError, match="has no token"):
            client.drain("11/m-0")
    assert union.one.store.acknowledge("n1").drain == ()


def test_a_source_that_does_not_take_our_token_says_so(union: Union) -> None:
    far = replace(
        union.sources[0], name="13", open=lambda: contextlib.nullcontext(Way(union.one.client("wrong")))
    )
    union.sources.append(far)
    wait_until(lambda: "13/m-0" in union.ids())
    with pytest.raises(RegistryUnreachable, match="refuses: this registry needs its token"):
        union.client.drain("13/m-0")


def test_a_source_that_ends_disappears(union: Union) -> None:
    del union.sources[0]
    wait_until(lambda: union.ids() == ["12/m-0"])
    with pytest.raises(NotFoundError):
        union.client.drain("11/m-0")


def test_a_source_that_is_silent_turns_stale_and_comes_back(union: Union) -> None:
    with registry() as third:
        third.client().push(push("n", report("x")))
        union.sources.append(source("13", third))
        wait_until(lambda: "13/x" in union.ids())
    wait_until(lambda: union.said)
    assert union.said[0].startswith("warning: 13: the registry at")
    union.all.clock.now += 31
    wait_until(lambda: union.status("13/x") == "unhealthy")
    assert "no word from its node" in union.client.get("13/x").metadata["reason"]
    wait_until(lambda: union.status("11/m-0") == "healthy")
    with registry() as again:
        again.client().push(push("n", report("x")))
        union.sources[-1] = source("13", again)
        wait_until(lambda: union.status("13/x") == "healthy")


def test_ages_are_told_and_no_clocks(union: Union) -> None:
    union.one.client(TOKEN).push(push("n1", report("m-0", age=7.0)))
    union.all.clock.now += 20  # their clocks have nothing to do with each other
    wait_until(lambda: 6 < union.all.clock.wall() - union.client.get("11/m-0").last_seen < 9)


def test_registries_that_mirror_each_other_do_so_once() -> None:
    here: list[Source[Way]] = []
    there: list[Source[Way]] = []
    with federated(here, []) as a, federated(there, []) as b:
        a.client(TOKEN).push(push("n", report("x")))
        here.append(source("b", b))
        there.append(source("a", a))
        here.append(source("itself", a))
        names = {"x", "itself/x", "b/a/x", "b/a/itself/x", "itself/b/a/x"}

        def ids() -> set[str]:
            return {each.service_id for each in a.client().services()}

        wait_until(lambda: ids() == names)
        revision = a.client().watch(None).revision
        assert a.client().watch(revision, 0.5).revision == revision, "it has come to rest"


STATUSES = st.sampled_from(["pending", "healthy", "failed"])
NODES = st.sampled_from(["n1", "n2"])
STEPS = st.lists(
    st.one_of(
        st.tuples(NODES, st.dictionaries(st.sampled_from("abcd"), STATUSES)),
        st.floats(0, 40),
        st.just("read"),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(STEPS)
def test_a_mirror_shows_what_its_source_shows(steps: list[Any]) -> None:
    clock = Clock()
    theirs = Store(wall=lambda: clock.wall() + 5e6, monotonic=clock.monotonic, history=2)
    ours = Store(wall=clock.wall, monotonic=clock.monotonic)
    mirror, since = Mirror("job"), None
    for step in [*steps, "read"]:
        if isinstance(step, float):
            clock.now += step
            theirs.sweep()
        elif step == "read":
            answer = theirs.changed_since(since)
            since = answer.revision
            mirror.learn(answer, clock.now, clock.wall())
            ours.apply(mirror.push(clock.now))
            assert {f"job/{each.service_id}": each.status for each in theirs.select()} == {
                each.service_id: each.status for each in ours.select()
            }
        else:
            node, services = step
            theirs.apply(
                push(f"{node}", *(report(f"{node}{name}", status=one) for name, one in services.items()))
            )
    for mine in ours.select():
        assert mine.last_seen <= clock.wall() + 1e-3
