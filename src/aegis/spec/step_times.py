"""The file `step_times.json`: how long the steps of a server take, so that `aegis sim` can rehearse a plan.

The planner writes it, the simulated engine reads it; docs/planner.md describes the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "aegis-step-times-1"
Ascending = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]
Rows = Annotated[tuple[tuple[Annotated[float, Meta(ge=0)], ...], ...], Meta(min_length=1)]


class Grid(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Milliseconds of a step by two quantities, both ascending; between them straight lines."""

    rows: Ascending
    columns: Ascending
    ms: Rows  # one list per element of `rows`, with one number per element of `columns`

    def __post_init__(self) -> None:
        """Check the shape, for msgspec to report with the path of the grid.

        Raises:
            ValueError: keys that do not ascend, or another number of values.
        """
        for name, keys in (("rows", self.rows), ("columns", self.columns)):
            if list(keys) != sorted(set(keys)):
                raise ValueError(f"`{name}` must ascend")
        if [len(self.columns)] * len(self.rows) != [len(row) for row in self.ms]:
            raise ValueError(f"`ms` must have {len(self.rows)} rows of {len(self.columns)} numbers")


class StepTimes(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Step times of one server that batches continuously.

    A step that prefills `n` tokens while `r` requests decode takes `mixed(n, r)`, which is for requests of the mean
    length `decode_length`; other lengths add what they add to a step without prefill.
    """

    format: Literal["aegis-step-times-1"] = FORMAT
    source: str = ""  # what it was made from, in words
    groups: Annotated[int, Meta(ge=1)] = 1  # that batch by themselves: data-parallel ranks x pipeline stages
    context_tokens: Annotated[int, Meta(ge=1)]  # of one group's step, at most
    tokens_per_step: Annotated[float, Meta(ge=1)] = 1.0  # that a decoding request gets: 1 + accepted drafts
    decode_length: Annotated[int, Meta(ge=1)]
    decode: Grid  # by (requests, mean length)
    mixed: Grid  # by (prefilled tokens, decoding requests)


def read_step_times(file: Path) -> StepTimes:
    """Read the file.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=StepTimes)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:  # a ValidationError is one too
        raise ConfigError(
            f"{file}: no step times: {error}", hint="`aegis plan ... --save_dir` writes it"
        ) from None
