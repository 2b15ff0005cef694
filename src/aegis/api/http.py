"""The session that servers are asked with, and the key that they ask for."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import aiohttp

KEY_VARIABLE: Final = "VLLM_API_KEY"
KEEP_ALIVE_SECONDS: Final = 4.0  # below uvicorn's 5: the side that sends must be the one that closes
CONNECT_SECONDS: Final = 10.0
READ_BYTES: Final = 1 << 18


def open_session(
    *, api_key: str | None = None, connections: int = 0, seconds: float | None = None
) -> aiohttp.ClientSession:
    """Return a session with keep-alive that knows no proxy and no cookies; to be closed by who asked for it.

    Args:
        api_key: what every request presents.
        connections: at once, to all servers together; 0 is any number.
        seconds: that a whole request may take; None is for ever.
    """
    import aiohttp  # noqa: PLC0415 - start-up time

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=authorization(api_key),
        timeout=aiohttp.ClientTimeout(total=seconds, connect=None, sock_connect=CONNECT_SECONDS),
        trust_env=False,
        read_bufsize=READ_BYTES,
    )


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the headers that present a key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def read_api_key(file: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return the key of a file, else of VLLM_API_KEY; None where there is neither.

    Raises:
        ConfigError: the file cannot be read, others may read it, or what it holds is no key.
    """
    if file is None:
        key = environ.get(KEY_VARIABLE) or None
        return _checked(key, KEY_VARIABLE) if key else None
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(handle, encoding="utf-8", errors="replace") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"{str(file)!r}: others may read this key", hint=f"chmod 600 -- {str(file)!r}"
                )
            return _checked(stream.read().strip(), repr(str(file)))
    except OSError as error:
        raise ConfigError(f"the key in {str(file)!r} cannot be read: {error.strerror}") from None


def _checked(key: str, where: str) -> str:
    if key and key.isascii() and key.isprintable():
        return key
    raise ConfigError(
        f"{where} holds no key that an HTTP header can carry", hint="a key is one line of printable ASCII"
    )
