"""What Prometheus is to scrape: the servers, gateways and registries of jobs, as a file of its `file_sd_configs`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.errors import AegisError
from aegis.registry.model import GATEWAY_TYPE, JOB_TYPE, MAP_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aegis.registry.model import Service
    from aegis.registry.sources import Source, Way

# A server that serves, or ought to: one that hangs is `up == 0`, which is what an alert is for. One that starts does not
# listen for minutes, and one that failed or was stopped will not come back: an alert on either would be noise.
SERVING: Final = frozenset({"healthy", "unhealthy", "draining"})
NO_SERVERS: Final = frozenset({MAP_TYPE, JOB_TYPE})
HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")
SURROGATE: Final = re.compile("[\ud800-\udfff]")  # of a name that is no UTF-8: JSON has none


class Group(Struct, frozen=True):
    """One target and its labels: an element of the file's list."""

    targets: tuple[str, ...]  # host:port
    labels: dict[str, str]  # never empty values: Prometheus takes those for absent


class Discovery:
    """Looks at registries again and again; one that is silent keeps the targets that it named last."""

    def __init__(self, sources: Callable[[], Sequence[Source[Way]]]) -> None:
        self._sources = sources
        self._known: dict[tuple[str, str], tuple[Group, ...]] = {}
        self.problems: dict[str, str] = {}  # of the last look, by the name of the source

    def look(self) -> tuple[Group, ...]:
        """Return all targets.

        Raises:
            AegisError: it cannot be said which registries there are.
        """
        sources = self._sources()
        self.problems = {}
        self._known = {each.key: self._known[each.key] for each in sources if each.key in self._known}
        for each in sources:
            try:
                with each.open() as way:
                    self._known[each.key] = groups(way.client.services(), each.at)
            except AegisError as error:
                self.problems[each.name] = error.message
        return tuple(group for found in self._known.values() for group in found)


def groups(services: Iterable[Service], registry_url: str) -> tuple[Group, ...]:
    """Return what one registry knows and the registry itself, by id; members without an API are no targets."""
    known = sorted(services, key=lambda each: each.service_id)
    address = registry_url.partition("://")[2].rstrip("/")
    jobs = {job for each in known if isinstance(job := each.metadata.get("job"), str)}
    itself = {
        "aegis": "registry",
        "job": jobs.pop() if len(jobs) == 1 else "",
        "instance": f"registry@{address}",
    }
    return (*map(_server, filter(_serves, known)), Group((address,), _labels(itself)))


def file_text(found: Sequence[Group]) -> bytes:
    """Return the content of the file."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _serves(service: Service) -> bool:
    return bool(
        service.status in SERVING
        and service.port
        and not service.metadata.get("rank")
        and service.service_type not in NO_SERVERS
        and HOST.fullmatch(service.host)
    )


def _server(service: Service) -> Group:
    told = service.metadata
    is_gateway = service.service_type == GATEWAY_TYPE
    labels = {
        "aegis": "gateway" if is_gateway else "engine",
        "job": told.get("job"),
        "instance": service.service_id,
        "node": told.get("node") or service.host,
        "model": "" if is_gateway else told.get("model"),  # a gateway's own series have it
        "engine": "" if is_gateway else service.service_type,
        "__scheme__": "https" if told.get("tls") else "",
        "__metrics_path__": told.get("metrics_path"),  # where it is not Prometheus' own default
    }
    host = f"[{service.host}]" if ":" in service.host else service.host
    return Group((f"{host}:{service.port}",), _labels(labels))


def _labels(told: Mapping[str, object]) -> dict[str, str]:
    """Return labels with a value: text that JSON can hold, whatever was told."""
    return {
        name: SURROGATE.sub("\ufffd", value)
        for name, value in told.items()
        if isinstance(value, str) and value
    }
