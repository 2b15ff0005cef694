"""Looks at a running instance: `/health`, its load, and a one-token request."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from .load import parse_metrics
from .vitals import Policy, Probe

if TYPE_CHECKING:
    from .ports import Ports
    from .vitals import Vitals

OK = 200
SERVER_ERROR = 500
NOT_FOUND = 404
LONGEST_TIMEOUT = 3600.0  # seconds; sockets refuse what does not fit their clock


class Prober:
    """Asks one instance how it is, in time or not at all."""

    def __init__(self, order: dict[str, Any], policy: Policy, ports: Ports, key: str) -> None:
        self.order = order
        self.policy = policy
        self.ports = ports
        self.load: dict[
            str, Any
        ] = {}  # the last that was read; `at`: when, on this node's clock that never jumps
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = "Bearer " + key
        self._asking: socket.socket | None = None  # the question under way
        self._stopping = False

    def stop(self) -> None:
        """Break off the question under way, and ask no more."""
        self._stopping = True
        _abort(self._asking)

    def look(self, vitals: Vitals, now: float) -> Probe:
        """Return what one look shows; what is asked depends on what is known."""
        if self.order["rank"] > 0:  # no API here: a running process is all there is to see
            return Probe(health=True, canary=True)
        path = self.order["health"]["path"]
        status, detail = self._ask("GET", path, None, self.policy.probe_timeout)
        if status != OK:
            return Probe(health=False, detail=detail or f"{path} answers {status}")
        if not self.order["health"]["canary_path"]:  # no engine: there is no token to ask for
            return Probe(health=True, canary=True)
        running = tokens = canary = None
        if vitals.status != "starting":
            running, tokens = self._read_load()
        detail = ""
        if vitals.canary_due(now, running):
            canary, detail = self._try_canary(vitals, now, tokens)
        return Probe(health=True, canary=canary, running=running, tokens=tokens, detail=detail)

    def _try_canary(self, vitals: Vitals, now: float, tokens: float | None) -> tuple[bool, str]:
        """Send the one-token request; return whether it was answered, and what went wrong."""
        health, patience = self.order["health"], self.policy.canary_timeout
        if vitals.status == "starting":  # the first request may compile kernels
            patience = max(1.0, self.policy.startup_timeout - (now - vitals.started))
        code, answer = self._ask("POST", health["canary_path"], json.dumps(health["canary"]), patience)
        answered = 0 < code < SERVER_ERROR
        if (
            code == NOT_FOUND
        ):  # no such route (an embedding model), or no such model: then this is no server of ours
            stranger = self._stranger(health["canary"]["model"])
            return not stranger, stranger
        if not answered and tokens is not None and self._read_load()[1] not in (None, tokens):
            answered = True  # a burst came before it: it waits its turn, and others are served
        return answered, "" if answered else (f"code {code}" if code else answer)

    def _stranger(self, model: str) -> str:
        """Return what else answers on our port, if it tells that it does not serve our model."""
        code, text = self._ask("GET", "/v1/models", None, self.policy.probe_timeout)
        try:
            names = [str(each["id"]) for each in json.loads(text)["data"]] if code == OK else [model]
        except (ValueError, LookupError, TypeError):
            return ""
        if model in names:
            return ""
        return f"another server answers on port {self.ports.api}: it serves {', '.join(names) or 'nothing'}"

    def _read_load(self) -> tuple[float | None, float | None]:
        """Return the requests being worked on and the tokens so far, as far as the engine tells."""
        code, page = self._ask("GET", "/metrics", None, self.policy.probe_timeout)
        if code != OK:
            return None, None
        load = parse_metrics(page, self.order["metrics"])
        told = [load[name] for name in ("prompt_tokens", "generation_tokens") if name in load]
        if told:
            load["tokens"] = sum(told)
        self.load = {"at": round(time.monotonic(), 3), **load}
        return load.get("running"), load.get("tokens")

    def _ask(self, method: str, path: str, body: str | None, timeout: float) -> tuple[int, str]:
        """Return the status and text of an answer; status 0 and what went wrong when there is none in time."""
        address, port = self.order["address"], self.ports.api
        connection = http.client.HTTPConnection(address, port, timeout=min(timeout, LONGEST_TIMEOUT))
        deadline = time.monotonic() + timeout
        # A drip of bytes never times out by itself. The connection forgets its socket when the answer is its last.
        watchdog = threading.Timer(timeout, lambda: _abort(self._asking))
        watchdog.daemon = True
        try:
            watchdog.start()
            connection.connect()
            self._asking = connection.sock
            if self._stopping or time.monotonic() >= deadline:
                return 0, "stopping" if self._stopping else f"no connection in {timeout:.0f} s"
            connection.request(method, path, body, self._headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except ConnectionRefusedError:
            return 0, f"nothing listens on port {port} yet"
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline - 0.05:
                return 0, f"no answer from {path} in {timeout:.0f} s"
            return 0, f"{path}: {error or type(error).__name__}"
        else:
            if time.monotonic() < deadline:  # else it was cut off, which may look like its end
                return answer.status, text
            return 0, f"no answer from {path} in {timeout:.0f} s"
        finally:
            watchdog.cancel()
            self._asking = None
            connection.close()


def _abort(connected: socket.socket | None) -> None:
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
