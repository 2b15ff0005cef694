"""Servers that take requests: read from an endpoints file or a registry, and followed while they come and go."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec
from msgspec import Struct

from aegis.api.http import authorization
from aegis.decoding import from_json
from aegis.errors import AegisError, ConfigError, SiteError
from aegis.registry.model import NO_ENGINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aegis.registry.client import RegistryClient
    from aegis.registry.model import Service

ASK_SECONDS: Final = 10.0  # for the names of a server's models
ASKED_AT_ONCE: Final = 32
POLL_SECONDS: Final = 1.0  # between two looks at an endpoints file, and after one that failed
BURST_SECONDS: Final = 0.02  # between two looks at a registry: what changes together comes together
WATCH_SECONDS: Final = 20.0  # that a registry may wait before it answers that nothing changed
LAST_PORT: Final = 65535
HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")
PORT: Final = re.compile(r"[0-9]{1,5}")


class Target(Struct, frozen=True):
    """One server, and the names of the models that it serves."""

    host: str
    port: int
    models: tuple[str, ...]
    node: str = ""
    instance: str = ""

    @property
    def address(self) -> str:
        """`host:port`, as in the endpoints file."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """`http://host:port`."""
        return f"http://{self.address}"


class Found(NamedTuple):
    """Servers that told their models, and what the others did instead, by `host:port`."""

    targets: tuple[Target, ...]
    failures: dict[str, str]


class ModelCard(Struct):
    """One entry of `/v1/models`."""

    id: str


class ModelList(Struct):
    """The answer of `/v1/models`."""

    data: tuple[ModelCard, ...]


def parse_endpoints(text: str, source: str) -> tuple[tuple[str, int], ...]:
    """Return host and port of every line, each once; empty lines and `#` comments are skipped.

    Raises:
        ConfigError: lines that are no `host:port`, all of them with their number.
    """
    found: dict[tuple[str, int], None] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        host, _, port = words.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if HOST.fullmatch(host) and PORT.fullmatch(port) and 0 < int(port) <= LAST_PORT:
            found[host, int(port)] = None
        else:
            problems.append(f"{source}:{number}: {words!r} is no host:port")
    if problems:
        raise ConfigError("\n".join(problems), hint="an endpoints file has one host:port a line")
    return tuple(found)


def read_endpoints(file: Path) -> tuple[tuple[str, int], ...]:
    """Return host and port of every line of a file.

    Raises:
        ConfigError: it cannot be read, or a line is wrong.
    """
    try:
        text = file.read_text("utf-8", "replace")
    except OSError as error:
        raise ConfigError(
            f"the endpoints file {str(file)!r} cannot be read: {error.strerror}",
            hint="name it with --endpoints-file, or a registry with --registry-host",
        ) from None
    return parse_endpoints(text, str(file))


def models_of(host: str, port: int, api_key: str | None = None, seconds: float = ASK_SECONDS) -> Target:
    """Ask a server for its models, without any proxy.

    Raises:
        SiteError: it does not answer, or not as a server of models does.
    """
    target = Target(host, port, ())
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=seconds)) as connection:
            connection.request("GET", "/v1/models", headers={"Connection": "close", **authorization(api_key)})
            response = connection.getresponse()
            body = response.read()
        if response.status != http.client.OK:
            hint = "set VLLM_API_KEY" if response.status == http.client.UNAUTHORIZED else None
            raise SiteError(f"{target.address} answers /v1/models with HTTP {response.status}", hint=hint)
        cards = from_json(body, ModelList).data
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SiteError(f"{target.address} does not answer: {reason}") from None
    except (http.client.HTTPException, msgspec.DecodeError):
        raise SiteError(f"{target.address} is no OpenAI-compatible server") from None
    return msgspec.structs.replace(target, models=tuple(card.id for card in cards))


def ask_all(endpoints: Iterable[tuple[str, int]], api_key: str | None = None) -> Found:
    """Ask many servers at once for their models, and keep the order."""

    def ask(endpoint: tuple[str, int]) -> Target | tuple[str, str]:
        try:
            return models_of(*endpoint, api_key)
        except SiteError as error:
            return Target(*endpoint, ()).address, error.message

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        answers = list(pool.map(ask, endpoints))
    return Found(
        tuple(answer for answer in answers if isinstance(answer, Target)),
        dict(answer for answer in answers if not isinstance(answer, Target)),
    )


def of_services(services: Iterable[Service]) -> tuple[Target, ...]:
    """Return the healthy servers among a registry's services, by id.

    Members without an API are none, and neither is what stands before servers or only tells of itself.
    """
    return tuple(
        Target(
            service.host,
            service.port,
            _names(service.metadata),
            str(service.metadata.get("node") or service.host),
            service.service_id,
        )
        for service in sorted(services, key=lambda service: service.service_id)
        if service.status == "healthy"
        and service.port
        and service.service_type not in NO_ENGINE
        and not service.metadata.get("rank")
    )


def _names(metadata: dict[str, Any]) -> tuple[str, ...]:
    name = metadata.get("model")
    return (name,) if isinstance(name, str) and name else ()


class Targets:
    """The servers there are now, kept current by a thread of its own between `with` and its end.

    What cannot be read for a while changes nothing: the last good answer stands, and `problem` says why.
    Any thread may ask.
    """

    def __init__(self, look: Callable[[Targets], tuple[Target, ...]], pause: float = POLL_SECONDS) -> None:
        self.problem = ""
        self.registry: RegistryClient | None = None  # where they come from, if from one
        self._look, self._pause = look, pause
        self._now: tuple[Target, ...] = ()
        self._revision = 0
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="targets", daemon=True)

    @classmethod
    def from_file(cls, file: Path, api_key: str | None = None) -> Targets:
        """Follow an endpoints file; each server is asked once for its models, and again if it failed to tell.

        Raises:
            ConfigError: the file cannot be read, or a line is wrong.
        """
        known: dict[tuple[str, int], Target] = {}

        def look(targets: Targets) -> tuple[Target, ...]:
            endpoints = read_endpoints(file)
            found = ask_all([each for each in endpoints if each not in known], api_key)
            known.update({(target.host, target.port): target for target in found.targets})
            for gone in known.keys() - set(endpoints):
                del known[gone]
            targets.problem = "; ".join(found.failures.values())
            return tuple(known[each] for each in endpoints if each in known)

        targets = cls(look)
        targets._now = look(targets)
        return targets

    @classmethod
    def from_registry(cls, client: RegistryClient) -> Targets:
        """Follow a registry's healthy services.

        Raises:
            RegistryUnreachable: it does not answer.
        """
        services: dict[str, Service] = {}
        since: int | None = None

        def look(targets: Targets) -> tuple[Target, ...]:
            nonlocal since
            answer = client.watch(since, WATCH_SECONDS)
            if answer.reset:
                services.clear()
            services.update({service.service_id: service for service in answer.services})
            for gone in answer.removed:
                services.pop(gone, None)
            since, targets.problem = answer.revision, ""
            return of_services(services.values())

        targets = cls(look, BURST_SECONDS)  # the registry itself waits for news
        targets.registry = client
        targets._now = look(targets)
        return targets

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()  # a thread that waits for an answer ends with it, or with the process

    @property
    def registries(self) -> tuple[RegistryClient, ...]:
        """The registries that the servers come from."""
        return (self.registry,) if self.registry else ()

    def now(self) -> tuple[int, tuple[Target, ...]]:
        """Return a revision and the servers; the revision grows with every change."""
        with self._changed:
            return self._revision, self._now

    def wait(self, revision: int, seconds: float) -> tuple[int, tuple[Target, ...]]:
        """Return as `now` does once there is another revision, or after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._revision != revision, seconds)
            return self._revision, self._now

    def _follow(self) -> None:
        pause = self._pause
        while not self._ended.wait(pause):
            try:
                found, pause = self._look(self), self._pause
            except AegisError as error:
                self.problem, pause = error.message, POLL_SECONDS
                continue
            with self._changed:
                if found != self._now:
                    self._now, self._revision = found, self._revision + 1
                    self._changed.notify_all()
