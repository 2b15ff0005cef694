"""How the rows of a slice become few bytes, and come back.

Axes: the rank of each value among those of the slice. Latencies: steps of a logarithm (lossy), or the bits of a
float64. Both are written as differences to the row before (the first of a curve: to the first of the curve before), as
planes of bytes of equal significance, and deflated: zlib is in every Python.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.tables.slices import Slice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.planner.operations import Floats, Ints

STEP = 1.9e-4  # of the natural logarithm: a value is off by at most half of it, 0.0095 %
ZERO = -(1 << 24)  # stands for a latency of 0, which has no logarithm: exp(ZERO * STEP) is 0.0
_LEVEL = 9
_WORD = 8  # bytes


class CodecError(ValueError):
    """The bytes are not what was written."""


def encode(rows: Slice, *, lossless: bool) -> bytes:
    """Return the bytes of a slice whose rows are sorted by its axes; lossy within 0.01 %."""
    ranked = [np.unique(axis, return_inverse=True) for axis in rows.axes]
    ranks = [rank.reshape(-1).astype(np.int64) for _, rank in ranked]
    steps = _bits(rows.latency) if lossless else _logarithms(rows.latency)
    sizes = [len(values) for values, _ in ranked]
    head = np.array([lossless, len(rows.latency), len(ranks), *sizes], dtype="<i8").tobytes()
    values = b"".join(values.astype("<i8").tobytes() for values, _ in ranked)
    columns = [*(np.diff(rank, prepend=0) for rank in ranks), _along_curves(steps, _starts(ranks))]
    return zlib.compress(head + values + b"".join(map(_pack, columns)), _LEVEL)


def decode(blob: bytes) -> Slice:
    """Return the slice of `encode`'s bytes.

    Raises:
        CodecError: the bytes are damaged.
    """
    try:
        body = memoryview(zlib.decompress(blob))
        lossless, rows, axes = (int(each) for each in np.frombuffer(body[: 3 * _WORD], dtype="<i8"))
        place = (3 + axes) * _WORD
        values, ranks = [], []
        for size in np.frombuffer(body[3 * _WORD : place], dtype="<i8"):
            end = place + _WORD * int(size)
            values.append(np.frombuffer(body[place:end], dtype="<i8").astype(np.int64))
            place = end
        for _ in range(axes):
            differences, place = _unpack(body, place, rows)
            ranks.append(np.cumsum(differences))
        differences, _ = _unpack(body, place, rows)
        steps = _from_curves(differences, _starts(ranks))
        columns = tuple(value[rank] for value, rank in zip(values, ranks, strict=True))
    except (zlib.error, ValueError, IndexError) as error:
        raise CodecError(str(error)) from None
    return Slice(columns, steps.view(np.float64) if lossless else np.exp(steps * STEP))


def _bits(latency: Floats) -> Ints:
    return np.ascontiguousarray(latency, dtype=np.float64).view(np.int64)


def _logarithms(latency: Floats) -> Ints:
    positive = latency > 0
    logarithm = np.log(np.where(positive, latency, 1.0))
    return np.where(positive, np.rint(logarithm / STEP).astype(np.int64), ZERO)


def _starts(ranks: list[Ints]) -> Ints:
    """Return the rows where a curve starts: where any axis but the last changes."""
    if not ranks or not len(ranks[0]):
        return np.zeros(0, dtype=np.int64)
    changed = np.zeros(len(ranks[0]), dtype=bool)
    changed[0] = True
    for rank in ranks[:-1]:
        changed[1:] |= rank[1:] != rank[:-1]
    return np.flatnonzero(changed)


def _along_curves(steps: Ints, starts: Ints) -> Ints:
    differences = np.diff(steps, prepend=0)  # int64 wraps around, and back: the bits of a float64 may
    differences[starts] = np.diff(steps[starts], prepend=0)
    return differences


def _from_curves(differences: Ints, starts: Ints) -> Ints:
    total = np.cumsum(differences)
    firsts = np.cumsum(differences[starts])
    lengths = np.diff(starts, append=len(differences))
    return total + np.repeat(firsts - total[starts], lengths)


def _pack(values: Ints) -> bytes:
    """Return whole numbers as planes of bytes, least significant first; as few planes as the largest needs."""
    folded: NDArray[np.uint64] = ((values << 1) ^ (values >> 63)).view(np.uint64)
    planes = folded.astype("<u8").view(np.uint8).reshape(-1, _WORD).T
    used = (int(folded.max()).bit_length() + 7) // 8 if len(folded) else 0
    return bytes([used]) + planes[:used].tobytes()


def _unpack(body: memoryview, place: int, rows: int) -> tuple[Ints, int]:
    used, place = body[place], place + 1
    if used > _WORD or rows < 0 or place + used * rows > len(body):
        raise CodecError("a column is cut short")
    planes = np.zeros((_WORD, rows), dtype=np.uint8)
    planes[:used] = np.frombuffer(body[place : place + used * rows], dtype=np.uint8).reshape(used, rows)
    folded = np.ascontiguousarray(planes.T).view("<u8").reshape(-1).astype(np.uint64)
    values = (folded >> np.uint64(1)).view(np.int64) ^ -((folded & np.uint64(1)).view(np.int64))
    return values, place + used * rows
