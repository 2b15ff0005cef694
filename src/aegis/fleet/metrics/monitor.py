"""Ask all instances of a job for their metrics at once; one that hangs delays the others by its deadline at most."""

from __future__ import annotations

import http.client
import socket
import time
from io import BytesIO
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from aegis.errors import AegisError
from aegis.fleet.concurrently import concurrently
from aegis.fleet.metrics.figures import Latencies, figures
from aegis.fleet.metrics.reading import Reading, read
from aegis.schedulers.transport import Here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.registry.model import Service
    from aegis.schedulers.transport import Transport

DEADLINE_SECONDS = 3.0
MAX_BYTES = 1 << 25
CHUNK_BYTES = 1 << 16
THREADS, FAR_THREADS = 64, 4
ROUNDS = 3  # of threads that may all run into the deadline


class InstanceFigures(Struct, frozen=True, kw_only=True):
    """One instance of a job; `error` says why it has no metrics."""

    instance: str
    model: str
    address: str
    error: str | None
    metrics: dict[str, float]


class JobFigures(Struct, frozen=True, kw_only=True):
    """All instances of a job; the first three keys are vec-inf's."""

    model_name: str
    metrics: dict[str, float]
    timestamp: float  # epoch seconds
    job_id: str
    window_seconds: float | None
    latencies: dict[str, Latencies]
    instances: tuple[InstanceFigures, ...]


class Monitor:
    """Looks at the instances of a job again and again; each look is compared with the one before."""

    def __init__(self, job_id: str, model_name: str, transport: Transport) -> None:
        self.job_id = job_id
        self.model_name = model_name
        self._transport = transport
        self._earlier: dict[str, Reading] = {}

    def look(self, services: Sequence[Service]) -> JobFigures:
        """Return the figures of some instances, and of each of them."""
        answers = collect(services, self._transport)
        looks = {
            name: (self._earlier.get(name), answer)
            for name, answer in answers.items()
            if isinstance(answer, Reading)
        }
        self._earlier.update((name, reading) for name, (_, reading) in looks.items())
        together = figures(list(looks.values()))
        return JobFigures(
            model_name=self.model_name,
            timestamp=time.time(),
            job_id=self.job_id,
            instances=tuple(
                InstanceFigures(
                    instance=service.service_id,
                    model=str(service.metadata.get("model", "")),
                    address=f"{service.host}:{service.port}",
                    error=answer if isinstance(answer := answers[service.service_id], str) else None,
                    metrics=_alone(looks.get(service.service_id)),
                )
                for service in services
            ),
            metrics=together.metrics,
            latencies=together.latencies,
            window_seconds=together.window_seconds,
        )


def collect(
    services: Sequence[Service], transport: Transport, seconds: float = DEADLINE_SECONDS
) -> Mapping[str, Reading | str]:
    """Return what each instance says, or why it says nothing, by its name."""
    answers = concurrently(
        lambda service: _reading(transport, service, seconds),
        services,
        threads=THREADS if isinstance(transport, Here) else FAR_THREADS,
        deadline=ROUNDS * seconds,
    )
    late = f"no answer within {ROUNDS * seconds:g} s"
    return {service.service_id: answer or late for service, answer in zip(services, answers, strict=True)}


def _alone(look: tuple[Reading | None, Reading] | None) -> dict[str, float]:
    return figures([look]).metrics if look else {}


def _reading(transport: Transport, service: Service, seconds: float) -> Reading | str:
    try:
        with transport.forward(service.host, service.port) as (host, port):
            page = fetch(host, port, "/metrics", seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (OSError, UnicodeError) as error:  # a host name may be no valid IDNA
        return getattr(error, "strerror", None) or str(error)
    except http.client.HTTPException:
        return "its answer is no HTTP, or broken off"
    except AegisError as error:
        return error.message
    reading = read(page, time.monotonic())
    return reading if reading.values else "its page has no metrics of an engine"


def fetch(host: str, port: int, path: str, seconds: float) -> str:
    """Return the body of a page; the deadline is that of the whole answer, however slowly it drips.

    Raises:
        OSError: nothing answers.
        TimeoutError: not in time.
        HTTPException: what answers is no HTTP.
        AegisError: it answers with another status than 200.
    """
    deadline = time.monotonic() + seconds
    name = f"[{host}]" if ":" in host else host
    request = f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n"
    answer = bytearray()
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.sendall(request.encode("ascii"))
        while len(answer) < MAX_BYTES:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
            part = connection.recv(CHUNK_BYTES)
            if not part:
                break
            answer += part
            if time.monotonic() > deadline:
                raise TimeoutError
    response = http.client.HTTPResponse(cast("socket.socket", _Received(bytes(answer))))
    response.begin()
    text = response.read().decode(errors="replace")
    if response.status != http.client.OK:
        raise AegisError(f"it answers with HTTP {response.status}")
    return text


class _Received:
    """An answer that has come, as http.client reads it."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, *_: object) -> BytesIO:
        """Return it as a stream."""
        return BytesIO(self._answer)
