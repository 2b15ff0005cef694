"""Which instance takes a request: least outstanding work, with affinity and a circuit breaker. Pure; the clock is passed in."""

from __future__ import annotations

import enum
import random
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from aegis.api.targets import Target

State = Literal["closed", "open", "half-open"]  # of a breaker: requests pass; none pass; a probe is under way


class Policy(Struct, frozen=True, kw_only=True):
    """The numbers that choices follow."""

    # Twice the 256 sequences that vLLM runs at once: it never lacks work, and what waits beyond can go elsewhere.
    outstanding: int = 512
    # A known beginning saves its prefill, and eight more sequences hardly slow a batch: worth waiting behind, no more are.
    slack: int = 8
    prefixes: int = 131_072  # remembered beginnings, 16 MB: the last 16 of each of 8,000 conversations
    failures: int = 3  # in a row: one is bad luck, or a bad request
    pause_seconds: float = (
        1.0  # before the first probe of an open breaker: a restart takes longer, a hiccup does not
    )
    longest_pause_seconds: float = 60.0  # pauses double until here: a minute is little beside loading a model
    jitter: float = 0.2  # of each pause: several gateways are not to probe in step
    stall_seconds: float = 60.0  # without a byte: longer than most prompts take, shorter than people wait
    probe_seconds: float = 60.0  # that a probe may take: it queues behind what the engine has


class Outcome(enum.Enum):
    """How a request to an instance ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # nobody listens: sure enough to open the breaker at once
    FAILED = "failed"  # before the first byte: reset, timed out, an answer that says the server is broken
    BROKE = "broke"  # after the first byte
    CANCELLED = "cancelled"  # by the client: says nothing of the instance


FAILURES = frozenset({Outcome.REFUSED, Outcome.FAILED, Outcome.BROKE})


class Backend(Struct, eq=False):
    """One instance, and what is known of it here; compared by identity. Only `Balance` changes it."""

    target: Target
    since: float  # when its state began
    heard: float  # when a byte last came, or work first did
    outstanding: int = 0
    state: State = "closed"
    gone: bool = False  # from the rotation: it finishes what it has
    failures: int = 0  # in a row
    pauses: int = 0  # since a request was last answered: each is longer
    retry: float = 0.0  # when an open breaker is probed
    probing: bool = False

    @property
    def name(self) -> str:
        """What logs and metrics call it: the instance, else `host:port`."""
        return self.target.instance or self.target.address


class _Ready:
    """Instances of one model that may be chosen, by outstanding requests; those waiting longest come first.

    Every request costs a few steps, however many instances there are.
    """

    __slots__ = ("least", "levels")

    def __init__(self) -> None:
        self.levels: dict[int, OrderedDict[Backend, None]] = {}  # none is empty
        self.least = 0  # of `levels`, where there are any

    def add(self, backend: Backend) -> None:
        number = backend.outstanding
        if not self.levels or number < self.least:
            self.least = number
        self.levels.setdefault(number, OrderedDict())[backend] = None

    def remove(self, backend: Backend) -> None:
        self._take(backend, backend.outstanding)
        if self.levels and self.least not in self.levels:
            self.least = min(self.levels)  # few levels; only when an instance leaves

    def moved(self, backend: Backend, before: int) -> None:
        """Bring an instance, whose outstanding requests are one more or less than before, to its level."""
        self._take(backend, before)
        self.add(backend)
        if self.least not in self.levels:
            self.least = backend.outstanding  # it was alone at the bottom, and is one above it

    def _take(self, backend: Backend, number: int) -> None:
        level = self.levels.get(number)
        if level is not None:
            level.pop(backend, None)
            if not level:
                del self.levels[number]

    def first(self, limit: int, but: Collection[Backend]) -> Backend | None:
        """Return the instance with the least outstanding requests below a limit, but none of these."""
        if not self.levels:
            return None
        if not but:
            return next(iter(self.levels[self.least])) if self.least < limit else None
        for number in sorted(self.levels):  # only a request that is tried again comes here
            if number >= limit:
                break
            for backend in self.levels[number]:
                if backend not in but:
                    return backend
        return None


class Balance:
    """The instances there are, and the choice between them. One thread asks."""

    def __init__(
        self,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._backends: dict[tuple[str, int, str], Backend] = {}  # in the rotation
        self._leaving: dict[tuple[str, int, str], Backend] = {}  # gone, with requests to finish
        self._ready: dict[str, _Ready] = {}  # by model; one without any instance that is ready stays
        self._known: OrderedDict[int, Backend] = OrderedDict()  # by prefix, the oldest first
        self._names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that instances in the rotation serve, sorted."""
        return self._names

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The instances in the rotation, and those that finish what they have."""
        return (*self._backends.values(), *self._leaving.values())

    def serves(self, model: str) -> bool:
        """Return whether any instance in the rotation, working or not, has a model."""
        return model in self._ready

    def update(self, targets: Iterable[Target]) -> None:
        """Make these the rotation; who is not among them gets no more requests and finishes those it has.

        Whoever was away comes back with a closed breaker: its agent has just seen it healthy.
        """
        now = self._clock()
        wanted = {(target.host, target.port, target.instance): target for target in targets}
        for key in self._backends.keys() - wanted.keys():
            self._leave(key, self._backends.pop(key))
        models = {model for target in wanted.values() for model in target.models}
        self._ready = {model: self._ready.get(model) or _Ready() for model in models}
        self._names = tuple(sorted(models))
        fresh = []
        for key, target in wanted.items():
            backend = self._backends.get(key)
            if backend is None:
                fresh.append(key)
            elif backend.target != target:
                self._withdraw(backend)
                backend.target = target
                self._offer(backend)
        self._rng.shuffle(fresh)  # several gateways are not to begin with the same one
        for key in fresh:
            self._join(key, wanted[key], now)

    def choose(self, model: str, prefixes: Sequence[int], *, but: Collection[Backend] = ()) -> Backend | None:
        """Return the instance that should take a request, or None where all are full, broken or tried.

        Args:
            model: that the request names.
            prefixes: hashes of ever longer beginnings of the conversation.
            but: instances that have been tried.
        """
        ready = self._ready.get(model)
        if ready is None:
            return None
        backend = self._remembered(model, prefixes, ready, but) or ready.first(self.policy.outstanding, but)
        if backend is not None:
            self._remember(prefixes, backend)
        return backend

    def begin(self, backend: Backend) -> None:
        """Count a request that is about to be sent."""
        if not backend.outstanding:
            backend.heard = self._clock()
        self._count(backend, 1)

    def end(self, backend: Backend, outcome: Outcome) -> None:
        """Count a request that has ended, and judge the instance by it."""
        self._count(backend, -1)
        if outcome is Outcome.ANSWERED:
            backend.failures = 0
            if backend.state == "closed":
                backend.pauses = 0
        elif outcome in FAILURES:
            backend.failures += 1
            sure = outcome is Outcome.REFUSED or backend.failures >= self.policy.failures
            if sure and backend.state == "closed":
                self._open(backend)
        if backend.gone and not backend.outstanding:
            self._leaving = {key: each for key, each in self._leaving.items() if each is not backend}

    def heard(self, backend: Backend) -> None:
        """Note that a byte of an answer came: the instance lives."""
        backend.heard = self._clock()

    def suspects(self) -> list[Backend]:
        """Return the instances to be probed now, each once until `probed` tells of it.

        They are those with work and no byte for `stall_seconds`, and those whose breaker has been open long enough; also
        those that are gone, while requests wait for them: a lost node ends no connection.
        """
        now = self._clock()
        found = [backend for backend in self.backends if not backend.probing and self._suspect(backend, now)]
        for backend in found:
            backend.probing = True
            if backend.state == "open":
                backend.state, backend.since = "half-open", now
        return found

    def probed(self, backend: Backend, *, answered: bool) -> None:
        """Close an instance's breaker after a probe that was answered, else open it for longer than before."""
        backend.probing = False
        if not answered:
            self._open(backend)
            return
        backend.failures, backend.heard = 0, self._clock()
        if backend.state != "closed":
            backend.state, backend.since = "closed", backend.heard
            self._offer(backend)

    def _suspect(self, backend: Backend, now: float) -> bool:
        if backend.state == "closed":
            return backend.outstanding > 0 and now - backend.heard >= self.policy.stall_seconds
        return now >= backend.retry

    def _open(self, backend: Backend) -> None:
        policy, now = self.policy, self._clock()
        self._withdraw(backend)
        pause = min(policy.pause_seconds * 2.0 ** min(backend.pauses, 32), policy.longest_pause_seconds)
        backend.retry = now + pause * (1 + policy.jitter * self._rng.random())
        backend.pauses += 1
        backend.state, backend.since = "open", now

    def _remembered(
        self, model: str, prefixes: Sequence[int], ready: _Ready, but: Collection[Backend]
    ) -> Backend | None:
        known, most = self._known, min(ready.least + self.policy.slack, self.policy.outstanding - 1)
        for prefix in reversed(prefixes):
            backend = known.get(prefix)
            if (
                backend is not None
                and backend.outstanding <= most
                and backend.state == "closed"
                and not backend.gone
                and model in backend.target.models
                and backend not in but
            ):
                return backend
        return None

    def _remember(self, prefixes: Sequence[int], backend: Backend) -> None:
        known = self._known
        for prefix in prefixes:
            known[prefix] = backend
            known.move_to_end(prefix)
        while len(known) > self.policy.prefixes:
            known.popitem(last=False)

    def _count(self, backend: Backend, step: int) -> None:
        before = backend.outstanding
        backend.outstanding = before + step
        if backend.state == "closed" and not backend.gone:
            for model in backend.target.models:
                self._ready[model].moved(backend, before)

    def _offer(self, backend: Backend) -> None:
        if backend.state == "closed" and not backend.gone:
            for model in backend.target.models:
                self._ready[model].add(backend)

    def _withdraw(self, backend: Backend) -> None:
        for model in backend.target.models:
            if model in self._ready:
                self._ready[model].remove(backend)

    def _join(self, key: tuple[str, int, str], target: Target, now: float) -> None:
        backend = self._leaving.pop(key, None) or Backend(target, now, now)
        backend.target, backend.gone, backend.state, backend.since = target, False, "closed", now
        backend.failures, backend.heard = 0, now
        self._backends[key] = backend
        self._offer(backend)

    def _leave(self, key: tuple[str, int, str], backend: Backend) -> None:
        self._withdraw(backend)
        backend.gone = True
        if backend.outstanding:
            self._leaving[key] = backend
