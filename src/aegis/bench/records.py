"""What was measured of each request: columns, one row a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


class Records(Struct, frozen=True, kw_only=True):
    """Requests in the order of their prompts; n of them, with g gaps between events together.

    Times are seconds of this machine's monotonic clock. A row with an error has no meaning but its `start`.
    """

    prompt: NDArray[np.int64]  # [n] index of its prompt in the load
    start: NDArray[np.float64]  # [n] when it was sent; before the connection, where one had to be opened
    ttft: NDArray[np.float64]  # [n] s from start to the first event with a choice
    latency: NDArray[np.float64]  # [n] s from start to the last such event
    input_tokens: NDArray[np.int64]  # [n] as the server counts
    output_tokens: NDArray[np.int64]  # [n] as the server counts; events, where it tells nothing
    gaps: NDArray[np.int64]  # [n] how many of `itl` are its own
    itl: NDArray[np.float64]  # [g] s between one event and the next
    errors: tuple[str, ...]  # [n] empty: it succeeded

    @property
    def good(self) -> NDArray[np.bool_]:
        """[n] Which succeeded."""
        return np.array([not error for error in self.errors], bool)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.errors)


COLUMNS: Final = tuple(name for name in Records.__struct_fields__ if name != "errors")
WHOLE = {"prompt", "input_tokens", "output_tokens", "gaps"}
KIND: Final[dict[str, np.dtype[Any]]] = {name: np.dtype("q" if name in WHOLE else "d") for name in COLUMNS}


def joined(parts: Sequence[Records]) -> Records:
    """Return the rows of all parts in the order of their prompts."""
    columns: dict[str, Any] = {name: _concatenated(name, parts) for name in COLUMNS}
    errors = [error for part in parts for error in part.errors]
    order = np.argsort(columns["prompt"], kind="stable")
    starts = np.cumsum(columns["gaps"]) - columns["gaps"]
    pieces = [columns["itl"][starts[row] : starts[row] + columns["gaps"][row]] for row in order]
    itl = np.concatenate(pieces) if pieces else columns["itl"]
    rows = {name: column[order] for name, column in columns.items() if name != "itl"}
    return Records(**rows, itl=itl, errors=tuple(errors[row] for row in order))


def _concatenated(name: str, parts: Iterable[Records]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, KIND[name]), *(getattr(part, name) for part in parts)])


def packed(records: Records) -> dict[str, Any]:
    """Return the columns as bytes, for another process on this machine."""
    columns: dict[str, Any] = {name: getattr(records, name).tobytes() for name in COLUMNS}
    return columns | {"errors": records.errors}


def unpacked(columns: dict[str, Any]) -> Records:
    """Return what `packed` was given."""
    arrays: dict[str, Any] = {name: np.frombuffer(columns[name], KIND[name]) for name in COLUMNS}
    return Records(**arrays, errors=tuple(columns["errors"]))
