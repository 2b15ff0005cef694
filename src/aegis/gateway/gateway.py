"""What the connections of one gateway share: who may ask, who is asked, who waits, and what is counted."""

from __future__ import annotations

import time
from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

from aegis.gateway.account import Account
from aegis.gateway.balance import Balance
from aegis.gateway.exchange import Exchange
from aegis.gateway.keys import Keys
from aegis.gateway.line import Line, no_instance
from aegis.gateway.probing import EMBEDDINGS
from aegis.gateway.question import BadQuestion, read
from aegis.gateway.refusal import Refusal
from aegis.gateway.request import Refused
from aegis.gateway.upstream import Pool

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from aegis.api.targets import Target
    from aegis.gateway.balance import Backend
    from aegis.gateway.downstream import Downstream
    from aegis.gateway.keys import Client
    from aegis.gateway.request import Request
    from aegis.gateway.settings import Settings

REMEMBERED_SECONDS: Final = 600.0  # that a model is known for after its last instance has gone
NAMED: Final = 20  # models that an error names


class Gateway:
    """One gateway without its socket. Everything happens in the thread of its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Prepare.

        Raises:
            ConfigError: the file of keys or the access log is not usable.
        """
        self.settings = settings
        self.balance = Balance(settings.policy)
        self.line = Line(settings, self.balance)
        self.pool = Pool(settings.connect_seconds)
        self.keys = Keys(settings.keys_file, time.time()) if settings.keys_file else None
        self.account = Account(settings, self.balance, self.line, self.keys)
        self.clients: set[Downstream] = set()
        self.exchanges: set[Exchange] = set()
        self.draining = False
        self.time = time.monotonic
        self.upstream_key = settings.upstream_key.encode() if settings.upstream_key else None
        self.pages: Callable[[], asyncio.Protocol]  # makes the protocol that answers everything else
        self.embedders: set[str] = set()  # models that have answered with embeddings
        self._known: dict[str, float] = {}  # models, and when they were last there

    def update(self, targets: Iterable[Target]) -> None:
        """Make these the instances from now on; what waits may go to new ones."""
        self.balance.update(targets)
        self._remember()
        self.serve_line()

    def serve_line(self) -> None:
        """Send on what waits, where there is room by now."""
        for model in self.line.models:
            self.line.serve(model)

    def freed(self, backend: Backend) -> None:
        """Give the place of a request that has ended to one that waits."""
        if self.line.length:
            for model in backend.target.models:
                self.line.serve(model)

    def sweep(self) -> None:
        """Give up what takes too long, and what nobody needs."""
        now = self.time()
        self._remember()
        if self.line.length:
            working = {
                model
                for backend in self.balance.backends
                if backend.state == "closed" and not backend.gone
                for model in backend.target.models
            }
            self.serve_line()  # what failed once on the only instance tries it again
            self.line.sweep(working, now)
        for client in tuple(self.clients):
            client.sweep(now)
        for exchange in tuple(self.exchanges):
            exchange.sweep(now)
        self.pool.sweep(now)

    def admit(self, client: Downstream, request: Request) -> Exchange:
        """Take a request in: it is on its way, or waits.

        Raises:
            Refused: it gets an error instead.
        """
        model, who = "", None
        try:
            who = self._who(request, None)
            path, kind = request.path.decode("latin-1"), request.content_type.decode("latin-1")
            question = read(path, request.body, kind)
            model = question.model
            if not self.balance.serves(model) and model not in self._known:
                self._unknown(model, who)
            if self.keys is not None:
                who = self._who(request, model)
            exchange = Exchange(self, client, request, question, who)
            exchange.start()
        except (BadQuestion, Refused) as error:
            self.account.refused(error.refusal, request, client.address, model, who)
            raise Refused(error.refusal) from None
        self.exchanges.add(exchange)
        return exchange

    def over(self, exchange: Exchange, *, cancelled: bool = False) -> None:
        """Forget a request that has ended."""
        self.exchanges.discard(exchange)
        if (
            not exchange.question.prefixes
            and exchange.request.path == EMBEDDINGS
            and exchange.status == HTTPStatus.OK
        ):
            self.embedders.add(exchange.question.model)
        self.account.ended(exchange, cancelled=cancelled)

    def _who(self, request: Request, model: str | None) -> Client | None:
        """Return whose key a request presents; None where none is asked for.

        Raises:
            Refused: it is not known, or may not ask this now.
        """
        if self.keys is None:
            return None
        presented = request.authorization.decode("latin-1") if request.authorization is not None else None
        found = self.keys.check(presented, model, time.time())
        if isinstance(found, Refusal):
            raise Refused(found)
        return found

    def _unknown(self, model: str, who: Client | None) -> NoReturn:
        """Name the models that there are.

        Raises:
            Refused: always.
        """
        names = [name for name in self.balance.names if who is None or who.may_ask(name)]
        if not names:
            raise Refused(no_instance(model))  # nothing is known yet, or nothing at all is left
        near = get_close_matches(model[:200], names, 1, 0.5)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise Refused(
            Refusal(
                status=404,
                message=f"there is no model {model[:200]!r} here{meant} There are: {', '.join(names[:NAMED])}{more}",
                code="model_not_found",
                param="model",
            )
        )

    def _remember(self) -> None:
        now = self.time()
        self._known.update(dict.fromkeys(self.balance.names, now))
        for model in [model for model, seen in self._known.items() if now - seen > REMEMBERED_SECONDS]:
            del self._known[model]
