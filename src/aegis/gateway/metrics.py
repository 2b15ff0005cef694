"""What a gateway tells Prometheus.

A request only adds to numbers that are there already (under a microsecond); lines are made of them when somebody looks,
and how busy instances are is read from the balance then. They are written here, since `prometheus_client` takes 220 ms for
the 33,000 lines of 1,000 instances, in which no request would move.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.gateway.balance import Balance, State
    from aegis.gateway.usage import Usage

SPACE: Final = "aegis_gateway_"
ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: from a short prompt to a full queue, and from a word to a long thought.
FIRST_BYTE: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
WHOLE: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0)
OTHER: Final = "other"  # every model that nobody serves
SWEEP_SECONDS: Final = 10.0
GONE_SECONDS: Final = 300.0  # that the series of an instance that has gone stay: a few scrapes
STATES: Final[dict[State, int]] = {"closed": 0, "half-open": 1, "open": 2}


class Times:
    """Durations in buckets, as a histogram tells them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the lines of a histogram."""
        number = 0
        for bound, count in zip((*self.bounds, "+Inf"), tuple(self.counts), strict=True):
            number += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {number}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {number}"


class _Served(Struct):
    """How long answers took: of one instance for one model, or for one key."""

    labels: str  # as they stand in a line
    first_byte: Times
    whole: Times

    @classmethod
    def of(cls, **labels: str) -> _Served:
        """Return one without answers."""
        return cls(_labels(**labels), Times(FIRST_BYTE), Times(WHOLE))

    def add(self, seconds: float, first_byte_seconds: float | None) -> None:
        """Count an answer."""
        self.whole.add(seconds)
        if first_byte_seconds is not None:
            self.first_byte.add(first_byte_seconds)


class _Asked(Struct):
    """What one key has asked of one instance and model."""

    labels: str
    codes: dict[int, int] = {}
    prompt: int = 0
    completion: int = 0


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {SPACE}{name} {text}", f"# TYPE {SPACE}{name} {kind}"


def _labels(**labels: str) -> str:
    return ",".join(f'{name}="{value.translate(ESCAPES)}"' for name, value in labels.items())


class Metrics:
    """What `/metrics` of a gateway shows; one thread counts, and any may look."""

    def __init__(
        self, balance: Balance, queued: Callable[[], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count from zero.

        Args:
            balance: whose instances are shown.
            queued: tells how many requests wait for an instance.
            clock: of seconds.
        """
        self._balance, self._queued, self._clock = balance, queued, clock
        self._asked: dict[tuple[str, str, str], _Asked] = {}  # model, key, instance
        self._served: dict[tuple[str, str], _Served] = {}  # model, instance
        self._of_keys: dict[
            tuple[str, str], _Served
        ] = {}  # model, key; apart, for both together would be too many
        self._retries: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._gone: dict[str, float] = {}  # instances, and since when they are not there
        self._swept = clock()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def answered(
        self,
        *,
        model: str,
        key: str = "",
        instance: str = "",
        code: int,
        seconds: float,
        first_byte_seconds: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Count a request that has ended.

        Args:
            model: that it named; one that nobody serves counts as `other`, unless an instance has just answered for it.
            key: the name of its key.
            instance: the name of the backend that answered; none where the gateway did.
            code: HTTP status; 499 where the client left before an answer began.
            seconds: that all of it took.
            first_byte_seconds: until its answer began.
            usage: the tokens that the answer told.
        """
        if not instance and not self._balance.serves(model):
            model = OTHER  # any word that a client may think of
        asked = self._asked.get((model, key, instance))
        if asked is None:
            asked = self._asked[model, key, instance] = _Asked(
                _labels(model=model, key=key, instance=instance)
            )
            self._sweep()
        asked.codes[code] = asked.codes.get(code, 0) + 1
        if usage is not None:
            asked.prompt += usage.prompt
            asked.completion += usage.completion
        if not instance:
            return
        served = self._served.get((model, instance))
        if served is None:
            served = self._served[model, instance] = _Served.of(model=model, instance=instance)
        served.add(seconds, first_byte_seconds)
        if key:
            of_key = self._of_keys.get((model, key))
            if of_key is None:
                of_key = self._of_keys[model, key] = _Served.of(model=model, key=key)
            of_key.add(seconds, first_byte_seconds)

    def retried(self, reason: str) -> None:
        """Count an attempt that failed and was made again elsewhere, by a reason out of a few."""
        self._retries[reason] = self._retries.get(reason, 0) + 1

    def refused(self, reason: str) -> None:
        """Count a request that went to no instance, by a reason out of a few."""
        self._refusals[reason] = self._refusals.get(reason, 0) + 1

    def exposition(self) -> tuple[bytes, str]:
        """Return the page, and its content type; another thread may ask while requests are counted."""
        self._sweep()
        parts = (self._requests(), self._durations(), self._instances(), self._few())
        text = "\n".join(line for part in parts for line in part)
        return text.encode("utf-8", "replace") + b"\n" + generate_latest(self._process), CONTENT_TYPE

    def _requests(self) -> Iterator[str]:
        asked = self._asked.copy()  # requests may come meanwhile
        yield from _head("requests_total", "counter", "Requests by how they ended")
        for who in asked.values():
            for code, number in who.codes.copy().items():
                yield f'aegis_gateway_requests_total{{{who.labels},code="{code}"}} {number}'
        yield from _head("tokens_total", "counter", "Tokens that answers told of")
        for (_, _, instance), who in asked.items():
            if not instance:
                continue
            yield f'aegis_gateway_tokens_total{{{who.labels},kind="prompt"}} {who.prompt}'
            yield f'aegis_gateway_tokens_total{{{who.labels},kind="completion"}} {who.completion}'

    def _durations(self) -> Iterator[str]:
        for whose, served in (("", self._served), ("key_", self._of_keys)):
            answers = served.copy().values()
            name = f"{whose}time_to_first_byte_seconds"
            yield from _head(name, "histogram", "From the whole request to the first byte of its answer")
            for each in answers:
                yield from each.first_byte.lines(f"{SPACE}{name}", each.labels)
            name = f"{whose}request_seconds"
            yield from _head(name, "histogram", "From the whole request to the end of its answer")
            for each in answers:
                yield from each.whole.lines(f"{SPACE}{name}", each.labels)

    def _instances(self) -> Iterator[str]:
        running: dict[str, int] = {}
        breakers: dict[str, int] = {}
        for backend in self._balance.backends:  # one that moved may be there twice, with one name
            model = backend.target.models[0] if backend.target.models else OTHER
            labels = _labels(model=model, instance=backend.name)
            running[labels] = running.get(labels, 0) + backend.outstanding
            if not backend.gone:
                breakers[_labels(instance=backend.name)] = STATES[backend.state]
        yield from _head("in_flight", "gauge", "Requests that an instance has of this gateway")
        for labels, number in running.items():
            yield f"{SPACE}in_flight{{{labels}}} {number}"
        yield from _head("breaker", "gauge", "Breaker of an instance: 0 closed, 1 half-open, 2 open")
        for labels, number in breakers.items():
            yield f"{SPACE}breaker{{{labels}}} {number}"

    def _few(self) -> Iterator[str]:
        yield from _head("queue_length", "gauge", "Requests that wait for an instance")
        yield f"aegis_gateway_queue_length {self._queued()}"
        for name, text, counts in (
            ("retries_total", "Attempts made again on another instance", self._retries),
            ("refused_total", "Requests that went to no instance", self._refusals),
        ):
            yield from _head(name, "counter", text)
            for reason, number in sorted(counts.copy().items()):
                yield f"{SPACE}{name}{{{_labels(reason=reason)}}} {number}"

    def _sweep(self) -> None:
        """Forget the series of instances that have been gone for a while; most calls come too soon to do anything."""
        now = self._clock()
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        here = {backend.name for backend in self._balance.backends}
        seen = {instance for _, _, instance in self._asked.copy() if instance}
        self._gone = {name: self._gone.get(name, now) for name in seen - here}
        old = {name for name, since in self._gone.items() if now - since >= GONE_SECONDS}
        for labels in [labels for labels in self._asked.copy() if labels[2] in old]:
            self._asked.pop(labels, None)
        for pair in [pair for pair in self._served.copy() if pair[1] in old]:
            self._served.pop(pair, None)
