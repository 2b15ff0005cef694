"""The file of the keys that clients present: a JSON line for each, with the key's SHA-256 and what it may do.

A plain hash is right here: a password needs a slow, salted one because it can be guessed, and nobody guesses 256 random
bits. So a gateway looks a key up in a microsecond, and whoever reads the file learns none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from aegis.errors import ConfigError, NotFoundError
from aegis.files import PRIVATE, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX: Final = "aegis-"  # so that a key is known for what it is where it should not be
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}\Z"  # also a label of metrics and a word of the access log
NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})

Fingerprint = tuple[int, int, int, int]  # mtime in ns, size, inode, mode


class Key(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line of the file: who may ask, and for what."""

    name: Annotated[str, Meta(pattern=NAME)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    models: tuple[Annotated[str, Meta(min_length=1)], ...] = ()  # globs; none: every model
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None  # the key is good before this


class KeyFile(NamedTuple):
    """What a file held when it was read."""

    keys: tuple[Key, ...]
    fingerprint: Fingerprint


def digest(key: str) -> str:
    """Return what a file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return what changes when a file is written again."""
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def read_keys(file: Path) -> KeyFile:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be read, others may read it, or lines are wrong: all of them with their number.
    """
    try:
        handle = os.open(
            file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a pipe is refused, not waited for
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{str(file)!r} is no file")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"{str(file)!r}: others may read these keys", hint=f"chmod 600 -- {str(file)!r}"
                )
            data = stream.read()
    except OSError as error:
        hint = (
            "make one with `aegis gateway keys add NAME --file FILE`" if error.errno == errno.ENOENT else None
        )
        raise ConfigError(f"the keys in {str(file)!r} cannot be read: {error.strerror}", hint=hint) from None
    return KeyFile(parse_keys(data, str(file)), fingerprint(status))


def parse_keys(data: bytes, source: str) -> tuple[Key, ...]:
    """Return the keys of a file's content.

    Raises:
        ConfigError: lines are wrong: all of them with their number.
    """
    decoder = msgspec.json.Decoder(Key)
    keys: list[Key] = []
    problems = []
    names: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problems.append(f"{source}:{number}: {error}")
            continue
        if key.name in names:
            problems.append(f"{source}:{number}: {key.name!r} stands in line {names[key.name]} already")
        names[key.name] = number
        keys.append(key)
    if problems:
        hint = "one JSON object a line; `aegis gateway keys` writes them"
        raise ConfigError("\n".join(problems), hint=hint)
    return tuple(keys)


def add_key(
    file: Path,
    name: str,
    *,
    models: tuple[str, ...] = (),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    until: datetime | None = None,
) -> str:
    """Add a key to a file, which is made where it is missing, and return the key: it is kept nowhere.

    Raises:
        ConfigError: the name is taken or none, a limit is wrong, or the file cannot be read or written.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    fields = {
        "name": name,
        "sha256": digest(secret),
        "models": models,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "until": until,
    }
    try:
        key = msgspec.convert(fields, Key)
    except msgspec.ValidationError as error:
        if "`$.name`" in str(error):
            hint = "letters, digits and . _ @ + -, at most 64, the first a letter or a digit"
            raise ConfigError(f"{name!r} is no name for a key", hint=hint) from None
        raise ConfigError(f"the key cannot be added: {error}") from None
    with _changing(file) as keys:
        if any(each.name == name for each in keys):
            raise ConfigError(
                f"{str(file)!r} has a key {name!r} already",
                hint="choose another name, or remove that key first",
            )
        keys.append(key)
    return secret


def remove_key(file: Path, name: str) -> None:
    """Remove a key from a file.

    Raises:
        NotFoundError: there is none of this name.
        ConfigError: the file cannot be read or written.
    """
    with _changing(file) as keys:
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise NotFoundError(
                f"{str(file)!r} has no key {name!r}",
                hint=f"it has {', '.join(k.name for k in keys) or 'none'}",
            )
        keys[:] = kept


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[list[Key]]:
    """Give the keys of a file to be changed, while nobody else may, and write what has become of them."""
    file = file.resolve()  # a link stays a link
    try:
        lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        keys = list(read_keys(file).keys) if file.exists() else []
        yield keys
        write_atomically(file, msgspec.json.Encoder().encode_lines(keys), PRIVATE)
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be written: {error.strerror}") from None
    finally:
        os.close(lock)
