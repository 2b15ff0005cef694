"""What a plan's configuration delivers at other loads than its own: the predictions that measurements are held against."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from aegis.errors import ConfigError, NotFoundError
from aegis.planner.difference import load as load_rows
from aegis.planner.estimate.aggregated import undisturbed
from aegis.planner.estimator import CORRECTED
from aegis.planner.models.resolve import find_model
from aegis.planner.problem import Load, Parallel, Tuning
from aegis.planner.search.agg import Points, evaluate_points
from aegis.planner.single import Asked, worker_of
from aegis.planner.task import Formats, WorkerQuestion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aegis.planner.calibrate import Calibrations
    from aegis.planner.estimate.worker import Worker

SIZES: Final = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")
MOST: Final = 512  # requests of a group, where a plan names no limit
HINT: Final = (
    "a plan is what `aegis plan default --json` or `plan estimate --json` prints, or a folder of --save-dir"
)


class Configuration(Struct, frozen=True, kw_only=True):
    """One aggregated server, as a plan has it."""

    model: str
    system: str
    backend: str
    version: str
    split: Parallel
    formats: Formats
    prefix: int = 0  # input tokens that the cache holds
    context_tokens: int  # of a mixed step
    batch: int = 0  # requests of a group at most; 0: the plan names no limit

    @property
    def name(self) -> str:
        """The split in words: `tp4`, `tp8pp2`."""
        sizes = {name: getattr(self.split, name) for name in SIZES}
        return "".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "tp1"


class Prediction(Struct, frozen=True, kw_only=True):
    """What one server delivers at one load, in ms and 1/s."""

    concurrency: float
    ttft: float
    tpot: float
    prefill_share: float  # of the TPOT: what the prompts of other requests take
    requests_per_s: float
    latency: float


class Predictor:
    """Predicts for one configuration; what is asked of the tables is kept for loads of the same lengths."""

    def __init__(self, configuration: Configuration, calibration: Calibrations = ()) -> None:
        self.configuration = configuration
        self.notes: tuple[str, ...] = ()
        self._calibration = calibration
        self._workers: dict[Load, Worker] = {}

    def at_concurrency(self, users: float, *, isl: int, osl: int) -> Prediction:
        """Return what a server does that so many users keep busy; beyond its limit the others wait (Little's law).

        Raises:
            AegisError: the model or the system is unknown, or there are no figures.
        """
        load = self._load(isl, osl)
        groups = self.configuration.split.pp * self.configuration.split.dp
        most = self.configuration.batch or MOST
        batch = min(max(users / groups, 1.0), float(most))
        found = self._between(load, batch)
        held = batch * groups
        if users <= held:
            return replace(found, concurrency=users)
        latency = 1000 * users / found.requests_per_s
        waits = latency - found.latency
        return replace(found, concurrency=users, ttft=found.ttft + waits, latency=latency)

    def at_rate(self, rate: float, *, isl: int, osl: int) -> Prediction | None:
        """Return what a server does that gets so many requests/s: as with the users whose requests come to that rate.

        None: it cannot serve as many, or the rate is that of less than one user.

        Raises:
            AegisError: as above.
        """
        load = self._load(isl, osl)
        batches = np.unique(np.geomspace(1, self.configuration.batch or MOST, 40).round())
        found = [self._between(load, batch) for batch in batches]
        rates = np.maximum.accumulate([each.requests_per_s for each in found])
        if rate > rates[-1]:
            return None
        if rate <= rates[0]:  # a request hardly ever meets another
            return replace(found[0], concurrency=rate * found[0].latency / 1000, requests_per_s=rate)
        batch = float(np.interp(rate, rates, batches))
        groups = self.configuration.split.pp * self.configuration.split.dp
        return replace(self._between(load, batch), concurrency=batch * groups, requests_per_s=rate)

    def _load(self, isl: int, osl: int) -> Load:
        return Load(isl=max(isl, 1), osl=max(osl, 1), prefix=min(self.configuration.prefix, max(isl - 1, 0)))

    def _between(self, load: Load, batch: float) -> Prediction:
        """Return what a batch delivers, on the straight line between whole ones."""
        low = int(batch)
        part = batch - low
        one, *more = self._whole(load, [low, low + 1] if part else [low])
        if not more:
            return one
        blended = {
            name: getattr(one, name) + part * (getattr(more[0], name) - getattr(one, name))
            for name in Prediction.__struct_fields__
        }
        return Prediction(**blended)

    def _whole(self, load: Load, batches: Sequence[int]) -> list[Prediction]:
        worker = self._worker(load)
        batch = np.array(batches)
        prompts = np.clip(self.configuration.context_tokens // load.isl, 1, np.maximum(batch - 1, 1))
        least = min(self.configuration.context_tokens, load.isl)  # chunks of a prompt
        chunk = np.where(self.configuration.context_tokens < load.isl, least, prompts * load.isl)
        rates = evaluate_points(worker, load, Points(batch, chunk, np.zeros(batch.shape)))
        groups = self.configuration.split.pp * self.configuration.split.dp
        return [
            Prediction(
                concurrency=float(size * groups),
                ttft=float(ttft),
                tpot=float(tpot),
                prefill_share=max(1 - float(alone) / float(tpot), 0.0) if tpot else 0.0,
                requests_per_s=float(rate),
                latency=float(ttft + tpot * (load.osl - 1)),
            )
            for size, ttft, tpot, rate, alone in zip(
                batch, *rates, undisturbed(worker, load, batch), strict=True
            )
        ]

    def _worker(self, load: Load) -> Worker:
        if load not in self._workers:
            known = self.configuration
            experts = find_model(known.model).has_experts
            asked = Asked(
                worker=WorkerQuestion(
                    model=known.model,
                    system=known.system,
                    backends=(known.backend,),  # type: ignore[arg-type] # a plan's, or refused by `fill`
                    version=known.version or None,
                    formats=known.formats if experts else replace(known.formats, moe=None),
                ),
                split=known.split,
                load=load,
                tuning=Tuning(),
                estimator=CORRECTED,
                calibration=self._calibration,
                where=lambda key: f"--plan: {key}",
            )
            self._workers[load] = worker_of(asked)
            self.notes = self._workers[load].performance.notes
        return self._workers[load]


def read_configuration(path: Path) -> Configuration:
    """Return the aggregated configuration that a plan ranks first.

    Args:
        path: what `aegis plan default --json` or `plan estimate --json` printed, best_config_topn.csv, or the folder.

    Raises:
        NotFoundError: it is not there.
        ConfigError: it is no plan, or has disaggregated configurations only.
    """
    rows = _rows(path)
    found = [row for row in rows if "bs" in row or "split" in row]
    if not found:
        raise ConfigError(
            f"{path}: no aggregated configuration" if rows else f"{path}: no configuration",
            hint="servers with separate prefill and decode are not predicted" if rows else HINT,
        )
    best = max(found, key=lambda row: float(row.get("tokens/s/gpu_cluster") or 0))
    try:
        return _of_estimate(best) if "split" in best else _of_row(best)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: this is no plan: {error!r}", hint=HINT) from None


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                return list(csv.DictReader(lines))[:1]  # ranked
        except FileNotFoundError:
            raise NotFoundError(f"{path}: there is no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}", hint=HINT) from None
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}", hint=HINT) from None
        single = content if isinstance(content, list) else [content]
        if single and all(isinstance(each, dict) and "split" in each for each in single):
            return single
    return [row for ranked in load_rows(path).values() for row in ranked[:1]]


def _of_row(row: dict[str, Any]) -> Configuration:
    names = {"gemm": "gemm", "moe": "moe", "kv_cache": "kvcache", "fmha": "fmha"}
    return Configuration(
        model=str(row["model"]),
        system=str(row["system"]),
        backend=str(row["backend"]),
        version=str(row["version"]),
        split=Parallel(**{name: int(row.get(name) or 1) for name in SIZES}),
        formats=Formats(**{name: str(row[column]) for name, column in names.items()}),
        prefix=int(row.get("prefix") or 0),
        context_tokens=int(float(row["ctx_tokens"])),
        batch=int(row["bs"]),
    )


def _of_estimate(row: dict[str, Any]) -> Configuration:
    formats = {name: str(row["quantization"][name]) for name in ("gemm", "moe", "kv_cache", "fmha")}
    return Configuration(
        model=str(row["model"]),
        system=str(row["system"]),
        backend=str(row["backend"]),
        version=str(row["version"]),
        split=Parallel(**{name: int(row["split"][name]) for name in SIZES}),
        formats=Formats(**formats),
        prefix=int(row["load"]["prefix"]),
        context_tokens=int(row["context_tokens"]),
    )
