"""JSON to known types, from any thread.

msgspec learns a class when it first meets it, and while it does another thread may see half of that: the interpreter crashes (0.22.0).
So what may first be read by two threads at once is read here, where one learns and the others wait.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_learning = threading.Lock()


def from_json(data: bytes | str, type_: type[T]) -> T:
    """Return the value that JSON tells.

    Raises:
        msgspec.DecodeError: it is no JSON, or not of this type.
        UnicodeDecodeError: its text is no UTF-8.
    """
    value: T = learnt(type_).decode(data)
    return value


def learnt(type_: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type that is known to msgspec from then on, whatever is done with it."""
    with _learning:
        return _decoder(type_)


@cache
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)
