"""Where the tokenizer of a served model is: the name that clients use need not be one."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path

import msgspec
from msgspec import Struct

from aegis.api.http import authorization
from aegis.api.targets import ASK_SECONDS, Target


class Card(Struct):
    """One entry of `/v1/models`."""

    id: str
    root: str | None = None  # what the server was told to load: a path, or a name of the hub


class Cards(Struct):
    """The answer of `/v1/models`."""

    data: tuple[Card, ...]


def root_of(target: Target, model: str, api_key: str | None = None) -> str | None:
    """Ask a server what a model was loaded from; None where it does not tell."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=ASK_SECONDS)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models", headers={"Connection": "close", **authorization(api_key)})
            cards = msgspec.json.decode(connection.getresponse().read(), type=Cards).data
    except (OSError, UnicodeError, http.client.HTTPException, msgspec.DecodeError):
        return None
    return next((card.root for card in cards if card.id == model), None)


def is_path(name: str) -> bool:
    """Tell a path from a name of the hub."""
    return name.startswith(("/", "./", "../", "~"))


def tokenizer_of(model: str, root: str | None, *, elsewhere: bool) -> tuple[str | None, str]:
    """Return what to name as the tokenizer, and what a person should know of it.

    Args:
        model: the name that clients use; vLLM takes it for the tokenizer's, too.
        root: what the server loaded.
        elsewhere: it is read on the server's node, where a path is what it is for the server.
    """
    if root is None or root == model:
        return None, ""
    if is_path(root) and not elsewhere and not Path(root).is_dir():
        return None, (
            f"the tokenizer of {model} is not on this machine ({root}): name one with `-- --tokenizer DIR`"
        )
    return root, ""
