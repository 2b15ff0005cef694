"""What Prometheus is told to scrape: the file's form, which servers are in it, and what a silent registry changes."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import RegistryUnreachable
from aegis.fleet.metrics.discovery import Discovery, Group, file_text, groups
from aegis.registry.model import STATUSES, Service
from aegis.registry.sources import Source, Way

if TYPE_CHECKING:
    from aegis.registry.client import RegistryClient

HANDLE, URL = "slurm://1001", "http://node0001:8471"
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def service(service_id: str = "m-0", **changes: Any) -> Service:
    given: dict[str, Any] = {
        "host": "node0001",
        "port": 8000,
        "service_type": "vllm",
        "status": "healthy",
        "last_seen": 1.0,
        "metadata": {"model": "org/m", "job": HANDLE, "node": "node0001", "rank": 0},
    }
    return Service(service_id=service_id, **{**given, **changes})


def check_form(text: bytes) -> list[dict[str, Any]]:
    """Hold a file against the rules of Prometheus' file_sd: a list of targets with labels, all of them text."""
    found: list[dict[str, Any]] = json.loads(text)
    assert isinstance(found, list)
    for group in found:
        assert set(group) == {"targets", "labels"}
        assert all(re.fullmatch(r"(\[[0-9A-Za-z:.%-]+\]|[\w.%-]+):\d+", each) for each in group["targets"])
        for name, value in group["labels"].items():
            assert LABEL.fullmatch(name)
            assert isinstance(value, str)
            value.encode()  # no half of a surrogate pair
    return found


def test_a_server_a_gateway_and_the_registry() -> None:
    gateway = service("gw-0", service_type="gateway", port=8080, metadata={"job": HANDLE, "node": "n1"})
    found = check_form(file_text(groups([service(), gateway], URL)))
    assert found == [
        {
            "targets": ["node0001:8080"],
            "labels": {"aegis": "gateway", "job": HANDLE, "instance": "gw-0", "node": "n1"},
        },
        {
            "targets": ["node0001:8000"],
            "labels": {
                "aegis": "engine",
                "job": HANDLE,
                "instance": "m-0",
                "node": "node0001",
                "model": "org/m",
                "engine": "vllm",
            },
        },
        {
            "targets": ["node0001:8471"],
            "labels": {"aegis": "registry", "job": HANDLE, "instance": "registry@node0001:8471"},
        },
    ]


def test_only_what_serves_or_ought_to() -> None:
    every = [service(status, status=status) for status in STATUSES]
    others = [
        service("member", metadata={"rank": 1}),
        service("no-api", port=0),
        service("map", service_type="map"),
        service("job", service_type="job"),
    ]
    named = [each.labels["instance"] for each in groups([*every, *others], URL)]
    assert named == ["draining", "healthy", "unhealthy", "registry@node0001:8471"]


def test_a_gateway_with_tls_and_an_address_of_ipv6() -> None:
    (found, _) = groups([service(host="fe80::1", service_type="gateway", metadata={"tls": True})], URL)
    assert found.targets == ("[fe80::1]:8000",)
    assert found.labels["__scheme__"] == "https"


told = st.dictionaries(
    st.sampled_from(["model", "job", "node", "rank", "tls", "metrics_path"]),
    st.none() | st.booleans() | st.integers(0, 3) | st.text(st.characters(), max_size=8),
)
services = st.builds(
    service,
    st.text(st.characters(), min_size=1, max_size=12),
    host=st.text(st.characters(), min_size=1, max_size=8) | st.sampled_from(["n1", "10.0.0.1", "::1"]),
    status=st.sampled_from(STATUSES),
    service_type=st.sampled_from(["vllm", "gateway", "$(reboot)", 'a"b\n', ""]),
    metadata=told,
)


@given(st.lists(services, max_size=4))
def test_whatever_names_there_are_the_file_keeps_its_form(known: list[Service]) -> None:
    check_form(file_text(groups(known, URL)))


class Registry:
    """Answers, or does not."""

    def __init__(self, *known: Service) -> None:
        self.known, self.silent = list(known), False

    def services(self) -> list[Service]:
        if self.silent:
            raise RegistryUnreachable("it does not answer")
        return self.known

    def source(self, name: str) -> Source[Way]:
        client: RegistryClient = self  # type: ignore[assignment]
        return Source(name=name, at=f"http://{name}:8471", open=lambda: nullcontext(Way(client)))


def instances(found: tuple[Group, ...]) -> list[str]:
    return [group.labels["instance"] for group in found if group.labels["aegis"] == "engine"]


def test_a_silent_registry_keeps_its_targets_and_one_that_is_gone_loses_them() -> None:
    first, second = Registry(service("a")), Registry(service("b"))
    sources = [first.source("one"), second.source("two")]
    discovery = Discovery(lambda: sources)
    assert instances(discovery.look()) == ["a", "b"]
    first.silent = True
    second.known.append(service("c"))
    assert instances(discovery.look()) == ["a", "b", "c"]
    assert discovery.problems == {"one": "it does not answer"}
    del sources[0]
    assert instances(discovery.look()) == ["b", "c"]
    assert not discovery.problems
