"""Two saved plans side by side: what the best configurations are set to, and what they deliver."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from aegis.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Value: TypeAlias = str | float | int | bool | None
Row: TypeAlias = dict[str, Value]
Rows: TypeAlias = dict[str, list[Row]]  # by experiment, ranked

BEST = "best_config_topn.csv"
# Columns that say what a configuration delivers; all others say what it is.
FIGURES = (
    *("tokens/s/gpu_cluster", "tokens/s/gpu", "tokens/s/user", "ttft", "tpot", "request_latency"),
    *(f"{name}_{end}" for name in ("tokens/s/gpu", "ttft", "tpot") for end in ("low", "high")),
    *("measured", "concurrency", "seq/s", "tokens/s", "memory", "(p)memory", "(d)memory"),
)
# Those that only say again what another one says.
_IGNORED = frozenset(
    {
        *(
            "index",
            "",
            "power_w",
            "balance_score",
            "request_rate",
            "seq/s/gpu",
            "num_ctx_reqs",
            "num_gen_reqs",
        ),
        *("num_tokens", "gen_tokens", "global_bs", "(p)global_bs", "(d)global_bs"),
    }
)


class Change(Struct, frozen=True, kw_only=True):
    """One column that differs."""

    column: str
    before: Value
    after: Value
    relative: float | None = None  # of figures


class Difference(Struct, frozen=True, kw_only=True):
    """The best configuration of one experiment in two plans."""

    experiment: str
    only_in: str | None = None  # "A" or "B", if it is in one only
    settings: tuple[Change, ...] = ()
    figures: tuple[Change, ...] = ()


def load(path: Path) -> Rows:
    """Read a saved plan: the folder that --save-dir wrote, or what --json printed.

    Raises:
        NotFoundError: it is not there.
        ConfigError: it is no plan.
    """
    if path.is_dir():
        found = {file.parent.name: _csv(file) for file in sorted(path.glob(f"*/{BEST}"))}
        if not found:
            raise ConfigError(
                f"{path}: no {BEST} in any folder of it", hint="name the folder that --save-dir has made"
            )
        return found
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such file or folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: {error}", hint="a plan is what `aegis plan default --json` prints"
        ) from None
    if not isinstance(content, dict) or not all(_is_rows(each) for each in content.values()):
        raise ConfigError(
            f"{path}: this is no plan", hint="a plan is what `aegis plan default --json` prints"
        )
    return content


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _csv(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(lines)]


def _value(cell: str) -> Value:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return int(number) if number.is_integer() and "." not in cell else number


def differences(before: Rows, after: Rows) -> tuple[Difference, ...]:
    """Return what differs between the best configurations of each experiment."""
    return tuple(_difference(name, before, after) for name in dict.fromkeys((*before, *after)))


def _difference(name: str, before: Rows, after: Rows) -> Difference:
    first, second = (rows.get(name) or [] for rows in (before, after))
    if not first or not second:
        side = "A" if first else "B" if second else None
        return Difference(experiment=name, only_in=side)
    changes = list(_changes(first[0], second[0]))
    return Difference(
        experiment=name,
        settings=tuple(each for each in changes if each.column not in FIGURES),
        figures=tuple(
            sorted(
                (each for each in changes if each.column in FIGURES),
                key=lambda each: FIGURES.index(each.column),
            )
        ),
    )


def _changes(before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterable[Change]:
    """Yield the columns that differ; one that only one of them has tells of the form of the file, not of the plan."""
    modes = tuple("agg" if "bs" in row else "disagg" for row in (before, after))
    if modes[0] != modes[1]:
        yield Change(column="mode", before=modes[0], after=modes[1])
    for column in before:
        one, two = before[column], after.get(column)
        if one == two or column in _IGNORED or column not in after:
            continue
        both = _is_number(one) and _is_number(two)
        relative = float(two) / float(one) - 1 if both and one else None  # type: ignore[arg-type]
        yield Change(column=column, before=one, after=two, relative=relative)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
