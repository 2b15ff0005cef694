"""Ask a registry: synchronous, standard library only below msgspec, deaf to proxies."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from aegis.decoding import from_json
from aegis.errors import AegisError, ConfigError, NotFoundError, RegistryUnreachable, SiteError
from aegis.registry.model import (
    Acknowledgement,
    Asked,
    Count,
    Failure,
    Granted,
    Push,
    Retirement,
    Seen,
    Service,
    Watched,
    Wish,
)
from aegis.registry.overview.model import Overview

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 5.0
CHUNK_BYTES: Final = 1 << 20
LOG_PATH: Final = "/ui/log"
OK: Final = frozenset({200, 202})


class RegistryClient:
    """One registry; every call opens a connection of its own, so threads may share a client.

    Args:
        url: `http://HOST:PORT`.
        token: what the write verbs (and protected reads) must present.
        timeout: seconds that connecting, and then the whole answer, may take.

    Every call raises RegistryUnreachable when no registry answers in time, SiteError when the token is
    missing or wrong, and ConfigError when the registry finds the request wrong.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        self._host, self._port = _parse(url)
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "Connection": "close"}
        if token is not None:
            if not token or not token.isascii() or not token.isprintable():
                raise ConfigError(
                    "the registry's token holds characters that no HTTP header can carry",
                    hint="a token is one line of printable ASCII",
                )
            self._headers["Authorization"] = f"Bearer {token}"

    def services(
        self, service_type: str | None = None, status: str | None = None, model: str | None = None
    ) -> list[Service]:
        """Return the services that match all that is given."""
        query = {"type": service_type, "status": status, "model": model}
        return self._ask("GET", "/services", list[Service], query=query)

    def healthy(
        self, service_type: str | None = None, timeout: float | None = None, model: str | None = None
    ) -> list[Service]:
        """Return the healthy services that were seen less than `timeout` seconds ago (default 30)."""
        query = {"type": service_type, "timeout": timeout, "model": model}
        return self._ask("GET", "/services/healthy", list[Service], query=query)

    def count(
        self, service_type: str | None = None, status: str | None = None, model: str | None = None
    ) -> int:
        """Return the number of services that match all that is given."""
        query = {"type": service_type, "status": status, "model": model}
        return self._ask("GET", "/services/count", Count, query=query).count

    def get(self, service_id: str) -> Service:
        """Return one service, or raise NotFoundError."""
        return self._ask("GET", service_path(service_id), Service)

    def push(self, push: Push) -> Acknowledgement:
        """Announce everything that one node runs."""
        body = msgspec.json.encode(push)
        return self._ask("PUT", f"/nodes/{_quote(push.node)}", Acknowledgement, body=body)

    def drain(self, service_id: str) -> Service:
        """Wish that a service takes no new requests, or raise NotFoundError."""
        return self._ask("POST", f"{service_path(service_id)}/drain", Service)

    def delete(self, service_id: str) -> Service:
        """Forget a service (its agent's next push brings it back), or raise NotFoundError."""
        return self._ask("DELETE", service_path(service_id), Service)

    def nodes(self) -> list[Seen]:
        """Return the nodes that tell of themselves."""
        return self._ask("GET", "/nodes", list[Seen])

    def order(self, node: str, orders: bytes) -> None:
        """Say what a node is to run from now on: the JSON of `fleet.order.NodeOrder`."""
        self._ask("PUT", f"/nodes/{_quote(node)}/orders", dict[str, Any], body=orders)

    def wish(self, wish: Wish) -> Asked:
        """Wish for another number of servers of a model; the head of the job will answer."""
        return self._ask("POST", "/wishes", Asked, body=msgspec.json.encode(wish))

    def asked(self, wish_id: str) -> Asked:
        """Return a wish, with its answer if there is one, or raise NotFoundError."""
        return self._ask("GET", f"/wishes/{_quote(wish_id)}", Asked)

    def answer(self, wish_id: str, answer: Granted) -> None:
        """Answer a wish, as the head of the job does, or raise NotFoundError."""
        self._ask("PUT", f"/wishes/{_quote(wish_id)}", Asked, body=msgspec.json.encode(answer))

    def stop(self) -> None:
        """Wish that the whole fleet ends."""
        self._ask("POST", "/stop", dict[str, Any])

    def retire(self, successor: str, *, done: bool = False) -> Retirement:
        """Wish that the job hands over to another, or say that it has let go; return whose wish counts: the first."""
        body = msgspec.json.encode(Retirement(successor=successor, done=done))
        return self._ask("POST", "/retire", Retirement, body=body)

    def watch(self, since: int | None = None, timeout: float = 30.0) -> Watched:
        """Wait up to `timeout` seconds for changes after a revision; None returns everything at once."""
        query = {"since": since, "timeout": timeout}
        return self._ask("GET", "/watch", Watched, query=query, patience=timeout)

    def overview(self) -> Overview:
        """Return everything that is shown of the fleet."""
        return self._ask("GET", "/overview", Overview)

    def log(self, service_id: str, lines: int) -> str:
        """Return the last lines that an instance wrote, or raise NotFoundError."""
        query = {"service": service_id, "lines": lines}
        return self.request("GET", LOG_PATH, query=query).decode(errors="replace")

    def ping(self) -> None:
        """Return when a registry answers."""
        self._ask("GET", "/healthz", dict[str, str])

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        patience: float = 0.0,
    ) -> bytes:
        """Return the body of a good answer as the registry sent it; all else is raised.

        Args:
            method: the HTTP verb.
            path: quoted, without query.
            query: parameters; None and empty ones are left out.
            body: JSON.
            patience: seconds that the registry may take on top of the client's timeout.
        """
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = f"{path}?{urlencode(given, errors='surrogateescape')}" if given else path
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.connect()
            if patience and connection.sock:
                connection.sock.settimeout(self._timeout + patience)
            deadline = time.monotonic() + self._timeout + patience
            connection.request(method, target, body, self._headers)
            with connection.getresponse() as response:
                answer = _read(response, deadline)
        except TimeoutError:
            raise self._unreachable(f"did not answer within {self._timeout + patience:g} s") from None
        except (OSError, UnicodeError) as error:  # a host name may be no valid IDNA
            raise self._unreachable(f"does not answer: {getattr(error, 'strerror', None) or error}") from None
        except http.client.HTTPException:
            raise self._stranger() from None
        finally:
            connection.close()
        if response.status in OK:
            return answer
        raise self._refused(response.status, path, answer)

    def decode(self, answer: bytes, type_: type[T]) -> T:
        """Return the value of an answer, or raise RegistryUnreachable when no registry can have sent it."""
        try:
            return from_json(answer, type_)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._stranger() from None

    def _ask(
        self,
        method: str,
        path: str,
        type_: type[T],
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        patience: float = 0.0,
    ) -> T:
        return self.decode(self.request(method, path, query=query, body=body, patience=patience), type_)

    def _refused(self, status: int, path: str, answer: bytes) -> AegisError:
        try:
            reason = from_json(answer, Failure).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._stranger(f" (HTTP {status})")
        if status == http.client.UNAUTHORIZED:
            return SiteError(
                f"the registry at {self.url} refuses: {reason}",
                hint="set AEGIS_REGISTRY_TOKEN, or name a file with --token-file",
            )
        if status == http.client.NOT_FOUND:
            return self._missing(path, reason)
        if status < http.client.INTERNAL_SERVER_ERROR:
            return ConfigError(f"the registry at {self.url} refuses: {reason}")
        return self._unreachable(f"failed: {reason}")

    def _missing(self, path: str, reason: str) -> AegisError:
        if path == LOG_PATH:
            return NotFoundError(reason)
        if path.startswith(("/services/", "/wishes/")):
            return NotFoundError(
                f"the registry at {self.url} has no {path}", hint="`aegis registry list` shows what it has"
            )
        return self._stranger(f": it has no {path}")

    def _unreachable(self, what: str) -> RegistryUnreachable:
        return RegistryUnreachable(
            f"the registry at {self.url} {what}",
            hint="check --registry-host and --registry-port, and that the job (or `aegis registry serve`) runs",
        )

    def _stranger(self, detail: str = "") -> RegistryUnreachable:
        return RegistryUnreachable(
            f"what answers at {self.url} is no registry{detail}",
            hint="check --registry-host and --registry-port: another service may listen there",
        )


def service_path(service_id: str) -> str:
    """Return the path of a service, whatever characters its id holds."""
    return f"/services/{_quote(service_id)}"


def _quote(name: str) -> str:
    return quote(name, safe="", errors="surrogateescape")


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read the whole body: a socket's timeout alone would let a server drip for ever."""
    parts = []
    while part := response.read1(CHUNK_BYTES):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _parse(url: str) -> tuple[str, int]:
    """Return host and port of a registry's URL, or raise ConfigError."""
    hint = "a registry's URL looks like http://node0001:8471"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no registry URL: {error}", hint=hint) from None
    problem = None
    if not url.isprintable() or " " in url:  # urlsplit drops some of these silently
        problem = "it holds blanks or control characters"
    elif parts.scheme != "http":
        problem = "it does not begin with http://"
    elif not parts.hostname:
        problem = "it names no host"
    elif not port:
        problem = "it names no port"
    elif parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        problem = "it holds more than a host and a port"
    if problem or not parts.hostname or not port:
        raise ConfigError(f"{url!r} is no registry URL: {problem}", hint=hint)
    return parts.hostname, port
