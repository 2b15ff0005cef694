"""Requests that wait for an instance, by model; who came first goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from aegis.gateway.refusal import Refusal
from aegis.gateway.request import Refused

if TYPE_CHECKING:
    from collections.abc import Collection

    from aegis.gateway.balance import Balance
    from aegis.gateway.exchange import Exchange
    from aegis.gateway.settings import Settings

FULL_SECONDS: Final = 5.0  # what a client is told to wait when there is no place for it
ABSENT_SECONDS: Final = 15.0  # and when there is no instance: one takes longer to start than to be free


class Line:
    """The requests that wait."""

    def __init__(self, settings: Settings, balance: Balance) -> None:
        self._settings = settings
        self._balance = balance
        self._waiting: dict[str, OrderedDict[Exchange, float]] = {}  # since when
        self._absent: dict[str, float] = {}  # models without an instance that works, since when
        self.length = 0

    def holds(self, model: str) -> bool:
        """Return whether any request waits for a model."""
        return model in self._waiting

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are waited for."""
        return tuple(self._waiting)

    def join(self, exchange: Exchange, now: float, *, first: bool = False) -> None:
        """Let a request wait; one that has been sent already goes first, however many wait.

        Raises:
            Refused: too many wait already.
        """
        if not first and self.length >= self._settings.queue_length:
            raise Refused(_full(f"{self.length:,} requests wait already"))
        waiting = self._waiting.setdefault(exchange.question.model, OrderedDict())
        waiting[exchange] = now
        if first:
            waiting.move_to_end(exchange, last=False)
        self.length += 1

    def leave(self, exchange: Exchange) -> None:
        """Forget a request, where it waits."""
        model = exchange.question.model
        waiting = self._waiting.get(model)
        if waiting is not None and waiting.pop(exchange, None) is not None:
            self.length -= 1
            if not waiting:
                del self._waiting[model]

    def serve(self, model: str) -> None:
        """Send what waits for a model to the instances that have room."""
        while waiting := self._waiting.get(model):
            exchange = next(iter(waiting))
            question = exchange.question
            backend = self._balance.choose(model, question.prefixes)
            if backend is None:
                return
            self.leave(exchange)
            exchange.go(backend)

    def sweep(self, working: Collection[str], now: float) -> None:
        """Refuse those that have waited for too long.

        Args:
            working: models with an instance that works, be it full.
            now: by the clock that tells when a request joined.
        """
        settings = self._settings
        for model in self.models:
            since = now if model in working else self._absent.get(model, now)
            self._absent[model] = since
            for exchange, joined in list(self._waiting[model].items()):
                if model not in working and now - max(since, joined) > settings.absent_seconds:
                    self._refuse(exchange, no_instance(model))
                elif now - joined > settings.queue_seconds:
                    self._refuse(
                        exchange, _full(f"no instance of {model!r} had room within {now - joined:.0f} s")
                    )
        for model in self._absent.keys() - self._waiting.keys():
            del self._absent[model]

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        self.leave(exchange)
        exchange.refuse(refusal)


def _full(why: str) -> Refusal:
    return Refusal(
        status=429,
        message=f"too much to do: {why}",
        kind="overloaded",
        code="overloaded",
        retry_after=FULL_SECONDS,
    )


def no_instance(model: str) -> Refusal:
    """Return the answer for a model that nobody serves just now."""
    return Refusal(
        status=503,
        message=f"no instance of {model!r} is there at present",
        kind="server_error",
        code="no_instance",
        retry_after=ABSENT_SECONDS,
    )
