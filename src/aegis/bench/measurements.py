"""Measurements to compare, out of the files that hold them: sweeps, the outputs of `aegis bench`, results of vLLM."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from aegis.bench.sweep.document import FILE, FORMAT, Question, read
from aegis.bench.sweep.table import LATENCIES, STATISTICS
from aegis.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

THROUGHPUTS: Final = ("request_throughput", "output_throughput", "total_token_throughput")
FIGURES: Final = (
    *THROUGHPUTS,
    *(f"{statistic}_{name}_ms" for name in LATENCIES for statistic in STATISTICS),
    "failed",
)
MOST: Final = "at most"  # the point of a sweep with the greatest throughput
TARGETS: Final = "within the targets"  # the SLA point
ONCE: Final = "one run"
HINT: Final = (
    "take a folder of `aegis bench sweep`, an output of `aegis bench`, or a result of `vllm bench serve`"
)


class Measurement(Struct, frozen=True, kw_only=True):
    """One load that was measured once, or several times."""

    figures: dict[str, float]
    errors: dict[str, float] = {}  # standard error of each; empty: not known
    samples: int = 0  # that the errors are of
    endpoints: dict[
        str, dict[str, float]
    ] = {}  # the figures of each, where servers were measured side by side


class Measured(Struct, frozen=True, kw_only=True):
    """What one file holds, by the load in words."""

    name: str
    loads: dict[str, Measurement]
    question: dict[str, Any] = {}  # what was asked, of a sweep


def load(path: Path) -> Measured:
    """Read a file, or the folder of a sweep.

    Raises:
        NotFoundError: it is not there.
        ConfigError: it holds nothing that is known here.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{str(file)!r}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error}", hint=HINT) from None
    if text.lstrip()[:1] not in {"{", "["}:
        return Measured(name=str(path), loads=_endpoints(_csv_rows(text, file)))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{str(file)!r}: {error}", hint=HINT) from None
    if isinstance(value, dict) and value.get("format") == FORMAT:
        return _sweep(file, str(path))
    if isinstance(value, dict) and isinstance(value.get("endpoints"), list):
        rows = [each for each in value["endpoints"] if isinstance(each, dict)]
        return Measured(name=str(path), loads=_endpoints(rows))
    if isinstance(value, dict) and "request_throughput" in value:
        return Measured(name=str(path), loads={ONCE: Measurement(figures=_figures(value))})
    raise ConfigError(f"{str(file)!r} holds no measurement", hint=HINT)


def _sweep(file: Path, name: str) -> Measured:
    sweep = read(file)
    kind = sweep.question.kind
    good = [point for point in sweep.points if not point.broken]
    loads = {
        f"{kind} {point.level:g}": Measurement(
            figures=_figures(point.figures), errors=point.noise, samples=point.slices
        )
        for point in good
    }
    if good:
        most = max(good, key=lambda point: point.figures["output_throughput"])
        loads[MOST] = _throughputs(loads[f"{kind} {most.level:g}"])
    if sweep.best is not None:
        loads[TARGETS] = _throughputs(loads[f"{kind} {sweep.best.level:g}"])
    asked = {name: value for name, value in _asked(sweep.question).items() if name != "servers"}
    return Measured(name=name, loads=loads, question=asked)


def _throughputs(measurement: Measurement) -> Measurement:
    """Return the throughputs alone: latencies at different loads say nothing."""
    kept = {name: measurement.figures[name] for name in THROUGHPUTS if name in measurement.figures}
    return msgspec.structs.replace(measurement, figures=kept)


def _asked(question: Question) -> dict[str, Any]:
    asked: dict[str, Any] = msgspec.to_builtins(question)
    return asked


def _csv_rows(text: str, file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    names = set(rows[0]) if rows else set()
    if "throughput_noise" in names:
        raise ConfigError(f"{str(file)!r} says too little of its noise", hint=f"name the {FILE} beside it")
    if not {"endpoint", "output_throughput"} <= names:
        raise ConfigError(f"{str(file)!r} holds no measurement", hint=HINT)
    return [row for row in rows if row["endpoint"] != "SUMMARY"]


def _endpoints(rows: Iterable[Mapping[str, Any]]) -> dict[str, Measurement]:
    """Return what the endpoints of a run come to, each model for itself."""
    models: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        model = str(row.get("model") or ONCE)
        models.setdefault(model, {})[str(row.get("endpoint") or "")] = _figures(row)
    return {
        model: Measurement(figures=_means(list(endpoints.values())), endpoints=endpoints)
        for model, endpoints in models.items()
    }


def _means(each: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean over endpoints of every figure that any has."""
    columns = {name: [one[name] for one in each if name in one] for name in FIGURES}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a row; zeros that stand for "not measured" are left out."""
    found = {}
    for name in FIGURES:
        try:
            value = float(row[name])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value) and (value > 0 or name == "failed"):
            found[name] = value
    return found
