"""Who may ask: keys looked up by their hash, and limits as buckets that fill by the clock."""

from __future__ import annotations

import fnmatch
import logging
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.gateway.keyfile import Fingerprint, Key, digest, fingerprint, read_keys
from aegis.gateway.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_SECONDS: Final = 1.0  # between two looks at the file
MINUTE: Final = 60.0
log = logging.getLogger(__name__)


class Bucket(Struct):
    """A limit: it holds a minute's worth at most, fills evenly, and may be overdrawn by what was not known before."""

    per_minute: float
    level: float
    at: float  # epoch seconds of `level`

    def refill(self, now: float) -> None:
        """Bring the level up to a moment; a clock that was set back gives nothing and takes nothing."""
        gained = max(0.0, now - self.at) * self.per_minute / MINUTE
        self.level, self.at = min(self.per_minute, self.level + gained), now

    def wait(self, now: float) -> float:
        """Return the seconds until there is at least one."""
        self.refill(now)
        return max(0.0, (1.0 - self.level) * MINUTE / self.per_minute)


class Client(Struct, eq=False):
    """Somebody whose key was found."""

    key: Key
    requests: Bucket | None
    tokens: Bucket | None
    until: float | None  # epoch seconds

    @property
    def name(self) -> str:
        """What logs and metrics call it."""
        return self.key.name

    def may_ask(self, model: str) -> bool:
        """Return whether the key is good for a model."""
        globs = self.key.models
        return not globs or any(fnmatch.fnmatchcase(model, glob) for glob in globs)


MISSING: Final = Refusal(
    status=401,
    message="this gateway asks for a key: send the header 'Authorization: Bearer KEY'",
    code="missing_api_key",
)
UNKNOWN: Final = Refusal(status=401, message="the API key is not known here", code="invalid_api_key")
EXPIRED: Final = Refusal(status=401, message="the API key has expired", code="expired_api_key")


class Keys:
    """The keys of a file, which is read again when it changes. All times are epoch seconds."""

    def __init__(self, file: Path, now: float, *, warn: Callable[[str], object] = log.warning) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, others may read it, or lines are wrong.
        """
        self._file = file
        self._warn = warn
        self._clients: dict[str, Client] = {}  # by the hash of their key
        self._looked = now
        self._seen: Fingerprint | None = None  # of the file as it was read; None: it could not be
        self._said = ""  # of a file that could not be read
        self._read(now)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all keys, sorted."""
        return tuple(sorted(client.name for client in self._clients.values()))

    def check(self, authorization: str | None, model: str | None, now: float) -> Client | Refusal:
        """Return who asks, or why they may not.

        A request for a model counts against the key's limits if it is let through; one that is for none (a list) never.

        Args:
            authorization: the header's value.
            model: that the request names.
            now: epoch seconds.
        """
        self._look(now)
        scheme, _, presented = (authorization or "").strip().partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            return MISSING
        # How long the look-up takes tells of a hash that nobody can choose a key for, and so nothing of the keys.
        client = self._clients.get(digest(presented))
        if client is None:
            return UNKNOWN
        if client.until is not None and now >= client.until:
            return EXPIRED
        return client if model is None else self._admit(client, model, now)

    def spend(self, client: Client, tokens: int, now: float) -> None:
        """Count the tokens of an answer; a limit that they overdraw refuses until it is filled again."""
        if client.tokens is not None:
            client.tokens.refill(now)
            client.tokens.level -= tokens

    @staticmethod
    def _admit(client: Client, model: str, now: float) -> Client | Refusal:
        if not client.may_ask(model):
            return Refusal(
                status=403,
                message=f"the API key {client.name!r} is not good for the model {model[:200]!r}",
                kind="permission_error",
                code="model_not_allowed",
                param="model",
            )
        for bucket, what in ((client.requests, "requests"), (client.tokens, "tokens")):
            if bucket is not None and (seconds := bucket.wait(now)) > 0:
                return Refusal(
                    status=429,
                    message=f"the API key {client.name!r} may have {bucket.per_minute:.0f} {what} a minute",
                    kind=what,
                    code="rate_limit_exceeded",
                    retry_after=seconds,
                )
        if client.requests is not None:
            client.requests.level -= 1
        return client

    def _look(self, now: float) -> None:
        """Read the file again if it has changed; a broken one changes nothing, and is told of once."""
        if 0 <= now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            current = fingerprint(self._file.stat())
        except OSError:
            current = None
        if current == self._seen:
            return
        try:
            self._read(now)
        except ConfigError as error:
            self._seen = None  # it may be read the next time
            if error.message != self._said:
                self._warn(f"the keys stay as they were: {error.message}")
            self._said = error.message

    def _read(self, now: float) -> None:
        found = read_keys(self._file)
        before = {client.name: client for client in self._clients.values()}
        self._clients = {key.sha256: _client(key, before.get(key.name), now) for key in found.keys}
        self._seen, self._said = found.fingerprint, ""


def _client(key: Key, before: Client | None, now: float) -> Client:
    """Return a client of a key; limits go on from where they were."""
    return Client(
        key,
        _bucket(key.requests_per_minute, before.requests if before else None, now),
        _bucket(key.tokens_per_minute, before.tokens if before else None, now),
        key.until.timestamp() if key.until else None,
    )


def _bucket(per_minute: int | None, before: Bucket | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if before is None:
        return Bucket(per_minute, per_minute, now)
    before.refill(now)
    before.per_minute = per_minute  # the same bucket: answers under way still count in it
    before.level = min(before.level, per_minute)
    return before
