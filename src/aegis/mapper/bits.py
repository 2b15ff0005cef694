"""A set of rows in one bit each. Pure."""

from __future__ import annotations


class Bits:
    """Numbers from 0 up to a bound, which is the caller's to keep.

    One thread may add while others look.
    """

    __slots__ = ("_bytes",)

    def __init__(self, bound: int) -> None:
        self._bytes = bytearray(-(-bound // 8))

    def __contains__(self, number: int) -> bool:
        return self._bytes[number >> 3] >> (number & 7) & 1 == 1

    def __len__(self) -> int:
        return int.from_bytes(self._bytes).bit_count()

    def add(self, number: int) -> None:
        """Make it one of them."""
        self._bytes[number >> 3] |= 1 << (number & 7)

    def discard(self, number: int) -> None:
        """Make it none of them."""
        self._bytes[number >> 3] &= ~(1 << (number & 7))

    def remove(self, others: Bits) -> None:
        """Take out those of a set of the same bound."""
        rest = int.from_bytes(self._bytes) & ~int.from_bytes(others._bytes)
        self._bytes[:] = rest.to_bytes(len(self._bytes))
