"""Words and vectors that are plainly simulated, and the same every time."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zlib import crc32

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

PHRASE: Final = ("simulated", "words", "of", "the", "aegis", "simulator,", "not", "a", "model:")
VOCABULARY: Final = 32_768
EMBEDDING_SIZE: Final = 384

_PIECE = re.compile(r"\S{1,12}")


def pieces(text: str) -> list[str]:
    """Split a text into tokens: words, and long words into parts of twelve characters."""
    return _PIECE.findall(text)


def token_id(piece: str) -> int:
    """Return the number of a token, below VOCABULARY."""
    return crc32(piece.encode("utf-8", "replace")) % VOCABULARY


class Output(Struct, frozen=True):
    """One answer, known before its first token is due."""

    tokens: tuple[str, ...]  # what each token adds to the text; nothing after a stop string
    text: str
    finish_reason: str  # stop or length
    stop_reason: str | None = None  # the stop string that was met


@lru_cache(maxsize=512)
def words(count: int, offset: int = 0) -> tuple[str, ...]:
    """Return `count` tokens of text; `offset` tells choices apart."""
    chosen = [PHRASE[(offset + index) % len(PHRASE)] for index in range(count)]
    return tuple(word if index == 0 else f" {word}" for index, word in enumerate(chosen))


@lru_cache(maxsize=512)
def plan(limit: int, natural: int, offset: int = 0, stops: tuple[str, ...] = ()) -> Output:
    """Return an answer of at most `limit` tokens that ends by itself after `natural` ones or at a stop string."""
    tokens = words(min(limit, natural), offset)
    text = "".join(tokens)
    found = [(text.find(stop) + len(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return Output(tokens, text, "stop" if natural <= limit else "length")
    end, stop = min(found)
    return Output(_cut(tokens, end, end - len(stop)), text[: end - len(stop)], "stop", stop)


def _cut(tokens: Sequence[str], end: int, visible: int) -> tuple[str, ...]:
    """Return the tokens up to the one that completes character `end`, showing the first `visible` characters."""
    kept: list[str] = []
    start = 0
    for token in tokens:
        if start >= end:
            break
        kept.append(token[: max(0, visible - start)])
        start += len(token)
    return tuple(kept)


def embedding(text: str, size: int = EMBEDDING_SIZE) -> array[float]:
    """Return a unit vector (32-bit floats) that depends on the text alone."""
    values = array("h", hashlib.shake_128(text.encode("utf-8", "replace")).digest(2 * size))
    if sys.byteorder == "big":
        values.byteswap()
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return array("f", [value / norm for value in values])
