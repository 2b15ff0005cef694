"""The tokens of an answer, found in its last bytes as it passes by."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT: Final = 1 << 14  # bytes: what engines write after `usage`, and more than once that
USAGE: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')
FRAME: Final = re.compile(
    rb"\r\n[0-9a-fA-F]{1,8}(?:;[^\r\n]*)?\r\n"
)  # between two chunks; JSON has no bare CR LF
NAMES: Final = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))
_decoder = json.JSONDecoder()


class Usage(Struct, frozen=True):
    """What an answer says that it cost."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        """Tokens read and written."""
        return self.prompt + self.completion


class Tail:
    """The end of one answer: bodies or bytes of the wire, in pieces of any size."""

    __slots__ = ("_pieces", "_size", "events")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.events = 0  # of a stream, about one a token: an estimate where it tells no usage

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the answer."""
        size = len(piece)
        self.events += piece.count(b"data: {")
        if size >= KEPT:
            self._pieces.clear()
            self._pieces.append(piece[-KEPT:])
            self._size = KEPT
            return
        self._pieces.append(piece)
        self._size += size
        while self._size - len(self._pieces[0]) >= KEPT:
            self._size -= len(self._pieces.popleft())

    def usage(self) -> Usage | None:
        """Return the last usage that the answer tells, or None where there is none."""
        text = FRAME.sub(b"", b"".join(self._pieces))
        return next(_usages(text), None) if b"_tokens" in text else None


def _usages(text: bytes) -> Iterator[Usage]:
    """Yield every usage in a text, the last one first."""
    for match in reversed(list(USAGE.finditer(text))):
        try:
            found, _ = _decoder.raw_decode(text[match.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        for names in NAMES:
            prompt, completion = (found.get(name) for name in names)
            if _is_count(prompt):
                yield Usage(prompt, completion if _is_count(completion) else 0)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
