"""Calibration: how much longer or shorter a measured server took than a plan said, as factors that later plans apply.

Factors are of one system, engine and model, or of any; a file holds one of them, or a list. In place of factors it may hold
what is left over of a site's own measured deployments (`silicon.site`), which plans then read with those that come along.

A measured sweep is a CSV file with a header, a JSON list of objects, an object with `rows`, or one JSON object a line.
Columns (aliases: those of `vllm bench serve`): `concurrency` (requests held at once), `ttft` and `tpot` (mean or median,
ms); any others are left alone. A plan's rows are written alike, with `prefill_share` (0 to 1) where it is known: the part
of the TPOT that prompts of other requests take.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from aegis.errors import ConfigError
from aegis.files import write_atomically
from aegis.planner.silicon.kriging import Residual  # noqa: TC001 - msgspec reads it

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aegis.planner.estimate.host import Host
    from aegis.planner.operations import Floats, Leaf, Performance, Query
    from aegis.planner.systems import System

_NAMES = {
    "concurrency": ("concurrency", "max_concurrency"),
    "ttft": ("ttft", "ttft_ms", "median_ttft_ms", "mean_ttft_ms"),
    "tpot": ("tpot", "tpot_ms", "median_tpot_ms", "mean_tpot_ms"),
}
_SHARE = "prefill_share"
_NOTHING = (None, "")
_QUIET = 4.0  # times the least concurrency: up to here the TTFT is prefill, not waiting
_LEAST = 0.1  # no factor is smaller: a TPOT that is all prefill says nothing of decode


class SweepRow(Struct, frozen=True, kw_only=True):
    """One load level: measured, or as a plan has it."""

    concurrency: float
    ttft: float  # ms
    tpot: float  # ms
    prefill_share: float = 0.0  # of the TPOT


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Factors on the latencies of a plan; of decode, by batch (concurrency), linear in its logarithm between."""

    system: str = ""  # empty: any
    backend: str = ""
    model: str = ""
    prefill: float = 1.0
    decode: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    error_before: float = 0.0  # mean of |plan / measured - 1| over TTFT and TPOT
    error_after: float = 0.0
    origin: str = ""
    ttft: tuple[Residual, ...] = ()  # of the site's own deployments, in place of factors
    tpot: tuple[Residual, ...] = ()

    def decode_factor(self, batch: Floats) -> Floats:
        """Return the factors of decode for batches; the outermost ones hold beyond."""
        at, factors = np.array(self.decode, dtype=np.float64).T
        factor: Floats = np.interp(np.log(np.maximum(batch, 1)), np.log(np.maximum(at, 1)), factors)
        return factor

    def host(self, host: Host) -> Host:
        """Return the host's times with factors: in each step the middle one of decode, for it does not know the batch."""
        decode = float(np.median([factor for _, factor in self.decode]))
        return replace(
            host,
            first=host.first * self.prefill,
            step=host.step * decode,
            request=host.request * decode,
        )


Calibrations = tuple[Calibration, ...]


def own_rows(known: Calibrations) -> tuple[tuple[Residual, ...], tuple[Residual, ...]]:
    """Return what is left over of the TTFT and of the TPOT of a site's own deployments, of all models, systems and engines."""
    return tuple(row for each in known for row in each.ttft), tuple(
        row for each in known for row in each.tpot
    )


def chosen(known: Calibrations, system: str, backend: str, model: str) -> Calibration | None:
    """Return the factors for a model on a system, those first that name all three; None: there are none."""
    asked = (system, backend, model.lower())
    fitting = [
        each
        for each in known
        if all(
            name in {"", value}
            for name, value in zip((each.system, each.backend, each.model.lower()), asked, strict=True)
        )
    ]
    return max(
        fitting, key=lambda each: bool(each.system) + bool(each.backend) + bool(each.model), default=None
    )


class Calibrated:
    """A `Performance` with factors: on what prompts take, and on what a token of each sequence takes."""

    def __init__(self, performance: Performance, calibration: Calibration | None) -> None:
        self._performance = performance
        self._known = calibration is not None
        self._calibration = calibration or Calibration()

    @property
    def system(self) -> System:
        """The hardware."""
        return self._performance.system

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of these figures."""
        known = self._calibration
        if not self._known:
            return (
                *self._performance.notes,
                f"{self.system.name}: not calibrated, the file has nothing for it",
            )
        if known.tpot:
            note = f"with {len(known.tpot)} measured rows of one's own{f', {known.origin}' if known.origin else ''}"
            return (*self._performance.notes, note)
        note = (
            f"calibrated{f' by {known.origin}' if known.origin else ''}: prefill x {known.prefill:.3g}, decode x "
            + (" to ".join(f"{factor:.3g}" for factor in sorted({factor for _, factor in known.decode})))
        )
        return (*self._performance.notes, note)

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: no figures for this operation.
        """
        value = self._performance.latency(operation, at)
        if operation.name.startswith("generation"):
            return value * self._calibration.decode_factor(at.batch.astype(np.float64))
        return value * self._calibration.prefill


def calibrate(measured: Sequence[SweepRow], planned: Sequence[SweepRow], origin: str = "") -> Calibration:
    """Return the factors that bring a plan nearest to what was measured.

    Prefill: the median of TTFT ratios where hardly any request waits. Decode, at each measured concurrency: what is
    left of the TPOT ratio after the prompts in it. A plan is read between its rows, linearly in ln(concurrency).

    Raises:
        ConfigError: fewer than one row on either side, or no common range of concurrency.
    """
    if not measured or not planned:
        raise ConfigError(f"there is no row in the {'plan' if measured else 'measured sweep'}")
    rows = _within(measured, planned)
    level = np.array([row.concurrency for row in rows])
    columns = {name: _read_at(planned, name, level) for name in ("ttft", "tpot", "prefill_share")}
    read = [
        SweepRow(
            concurrency=row.concurrency, **{name: float(column[index]) for name, column in columns.items()}
        )
        for index, row in enumerate(rows)
    ]
    return calibrate_pairs(list(zip(rows, read, strict=True)), origin=origin)


def calibrate_pairs(
    pairs: Sequence[tuple[SweepRow, SweepRow]],
    *,
    system: str = "",
    backend: str = "",
    model: str = "",
    origin: str = "",
) -> Calibration:
    """Return the factors of loads that were measured and planned, of one sweep or several; medians where a load comes again.

    Raises:
        ConfigError: there is no pair.
    """
    if not pairs:
        raise ConfigError("nothing was both measured and planned")
    ttft, tpot, plan_ttft, plan_tpot, share, level = np.array(
        [
            (was.ttft, was.tpot, plan.ttft, plan.tpot, plan.prefill_share, was.concurrency)
            for was, plan in sorted(pairs, key=lambda pair: pair[0].concurrency)
        ]
    ).T
    quiet = level <= _QUIET * level.min()
    prefill = float(np.median((ttft / plan_ttft)[quiet]))
    each = np.maximum((tpot / plan_tpot - prefill * share) / np.maximum(1 - share, _LEAST), _LEAST)
    levels = np.unique(level)
    factors = np.array([np.median(each[level == at]) for at in levels])
    decode = factors[np.searchsorted(levels, level)]
    after = plan_tpot * (prefill * share + decode * (1 - share))
    return Calibration(
        system=system,
        backend=backend,
        model=model,
        prefill=round(prefill, 4),
        decode=tuple(
            (float(at), round(float(factor), 4)) for at, factor in zip(levels, factors, strict=True)
        ),
        error_before=_error(plan_ttft, ttft, plan_tpot, tpot),
        error_after=_error(plan_ttft * prefill, ttft, after, tpot),
        origin=origin,
    )


def read_sweep(file: Path) -> list[SweepRow]:
    """Return the rows of a measured sweep or of a plan.

    Raises:
        ConfigError: it cannot be read, or a column is missing or no number, with file and row.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return [_row(values, f"{file}: row {index}") for index, values in enumerate(_records(text, str(file)), 1)]


def read_calibrations(file: Path) -> Calibrations:
    """Return the factors that `write_calibrations` wrote.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Calibration | Calibrations)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file}: {error}", hint="`aegis plan calibrate` writes such a file") from None
    return (found,) if isinstance(found, Calibration) else found


def write_calibrations(file: Path, known: Calibrations) -> None:
    """Write factors as JSON.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(file, msgspec.json.format(msgspec.json.encode(known), indent=2) + b"\n")


def _within(measured: Sequence[SweepRow], planned: Sequence[SweepRow]) -> list[SweepRow]:
    """Return the measured rows, by concurrency, that lie in the range of the plan: one for each level."""
    low, high = (end(row.concurrency for row in planned) for end in (min, max))
    levels = {row.concurrency: row for row in measured if low <= row.concurrency <= high}
    if not levels:
        there = ", ".join(f"{row.concurrency:g}" for row in measured)
        raise ConfigError(
            f"measured at concurrency {there}, planned for {low:g} to {high:g}: nothing to compare",
            hint="plan the same levels of load",
        )
    return [levels[level] for level in sorted(levels)]


def _read_at(rows: Sequence[SweepRow], name: str, level: Floats) -> Floats:
    ordered = sorted(rows, key=lambda row: row.concurrency)
    at = np.log([row.concurrency for row in ordered])
    read: Floats = np.interp(np.log(level), at, [getattr(row, name) for row in ordered])
    return read


def _error(plan_ttft: Floats, ttft: Floats, plan_tpot: Floats, tpot: Floats) -> float:
    return round(float(np.mean(np.abs([*(plan_ttft / ttft - 1), *(plan_tpot / tpot - 1)]))), 4)


def _records(text: str, name: str) -> list[dict[str, Any]]:
    if text.lstrip()[:1] not in {"[", "{"}:
        return list(csv.DictReader(io.StringIO(text)))
    try:
        value = _decoded(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{name}: {error}", hint="CSV with a header, or JSON") from None
    value = value.get("rows", [value]) if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{name}: a list of objects is wanted", hint="one object for each level of load")
    return value


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        lines = text.strip().splitlines()
        if len(lines) == 1:
            raise
        return [msgspec.json.decode(line) for line in lines if line.strip()]


def _row(values: dict[str, Any], where: str) -> SweepRow:
    found = {name: _number(values, aliases, where) for name, aliases in _NAMES.items()}
    if min(found.values()) <= 0:
        raise ConfigError(f"{where}: concurrency, ttft and tpot must be greater than 0")
    if values.get(_SHARE) not in _NOTHING:
        found[_SHARE] = min(max(_number(values, (_SHARE,), where), 0.0), 1.0)
    return SweepRow(**found)


def _number(values: dict[str, Any], aliases: Sequence[str], where: str) -> float:
    name = next((each for each in aliases if values.get(each) not in _NOTHING), None)
    if name is None:
        raise ConfigError(f"{where}: no column {aliases[0]}", hint=f"it may be called {', '.join(aliases)}")
    try:
        number = float(values[name])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {name} is {values[name]!r}, no number")
    return number
