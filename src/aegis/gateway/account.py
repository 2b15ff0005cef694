"""What is written down of requests: metrics, access log, and the tokens that keys have spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aegis.gateway.access import AccessLog, Entry
from aegis.gateway.metrics import Metrics

if TYPE_CHECKING:
    from aegis.gateway.balance import Balance
    from aegis.gateway.exchange import Exchange
    from aegis.gateway.keys import Client, Keys
    from aegis.gateway.line import Line
    from aegis.gateway.refusal import Refusal
    from aegis.gateway.request import Request
    from aegis.gateway.settings import Settings


class Account:
    """Counts requests as they end."""

    def __init__(self, settings: Settings, balance: Balance, line: Line, keys: Keys | None) -> None:
        """Open the access log.

        Raises:
            ConfigError: it cannot be written.
        """
        self.metrics = Metrics(balance, lambda: line.length) if settings.metrics else None
        self._access = AccessLog(settings.access_log) if settings.access_log else None
        self._keys = keys
        self.tells = bool(keys or self.metrics or self._access)  # whether anybody wants to know

    def ended(self, exchange: Exchange, *, cancelled: bool) -> None:
        """Count a request that an instance was asked, or that waited for one."""
        if not self.tells:
            return
        now, seconds = time.time(), exchange.time() - exchange.began
        usage = exchange.tail.usage() if exchange.tail is not None and exchange.first else None
        first = exchange.first - exchange.began if exchange.first else None
        key = exchange.who.name if exchange.who is not None else ""
        instance = exchange.backend.name if exchange.backend is not None else ""
        model = exchange.question.model
        if self._keys is not None and exchange.who is not None and exchange.tail is not None:
            self._keys.spend(exchange.who, usage.total if usage else exchange.tail.events, now)
        if self.metrics is not None:
            self.metrics.answered(
                model=model,
                key=key,
                instance=instance if exchange.first else "",
                code=exchange.status,
                seconds=seconds,
                first_byte_seconds=first,
                usage=usage,
            )
        if self._access is not None:
            request = exchange.request
            entry = Entry(
                time=now - seconds,
                key=key,
                client=exchange.client.address,
                method=request.method.decode("latin-1"),
                path=request.path.decode("latin-1"),
                model=model,
                instance=instance,
                status=exchange.status,
                seconds=seconds,
                first_byte_seconds=first,
                bytes_in=len(request.body),
                bytes_out=exchange.size,
                prompt_tokens=usage.prompt if usage else None,
                completion_tokens=usage.completion if usage else None,
                retries=max(0, exchange.attempts - 1),
                cancelled=cancelled,
            )
            self._access.write(entry)

    def retried(self, reason: str) -> None:
        """Count an attempt that failed."""
        if self.metrics is not None:
            self.metrics.retried(reason)

    def refused(
        self, refusal: Refusal, request: Request | None, address: str, model: str, who: Client | None
    ) -> None:
        """Count a request that went to no instance."""
        if self.metrics is not None:
            self.metrics.refused(refusal.code or "bad_request")
        if request is None:
            return  # nothing of it was understood
        key = who.name if who is not None else ""
        if self.metrics is not None:
            self.metrics.answered(model=model, key=key, code=refusal.status, seconds=0.0)
        if self._access is not None:
            entry = Entry(
                time=time.time(),
                key=key,
                client=address,
                method=request.method.decode("latin-1"),
                path=request.path.decode("latin-1"),
                model=model,
                status=refusal.status,
                seconds=0.0,
                bytes_in=len(request.body),
            )
            self._access.write(entry)

    def refused_late(self, refusal: Refusal) -> None:
        """Count a request that was taken in, and then refused; `ended` tells the rest of it."""
        if self.metrics is not None:
            self.metrics.refused(refusal.code or "bad_request")

    def reopen(self) -> None:
        """Open the access log anew, after it was moved away."""
        if self._access is not None:
            self._access.reopen()

    def close(self) -> None:
        """Close the access log."""
        if self._access is not None:
            self._access.close()
