"""Rows of `aegis top`: what is told of a job, a model, an instance, a map and an error. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aegis.cli.live import clock_text, count_text
from aegis.cli.render import age
from aegis.cli.top_table import Cell, Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.registry.overview.model import Error, Instance, Job, MapRun, Model, Point, Quantiles

STYLES: Final = {
    "healthy": "green",
    "READY": "green",
    "starting": "yellow",
    "pending": "yellow",
    "LAUNCHING": "yellow",
    "PENDING": "yellow",
    "draining": "cyan",
    "stopped": "dim",
    "SHUTDOWN": "dim",
    "unhealthy": "bold red",
    "failed": "bold red",
    "FAILED": "bold red",
}
BARS: Final = "▁▂▃▄▅▆▇█"
BAR_CELLS: Final = 24
HISTORY_SECONDS: Final = 600.0  # of the small pictures
SOON_SECONDS: Final = 600.0  # of walltime that are shown in red
NOTHING: Final = "-"
MILLISECONDS: Final = 1000.0

JOBS: Final = (
    Column("JOB", least=14, tail=True),
    Column("NAME", least=8, rank=6),
    Column("SERVICE", least=8, rank=4),
    Column("STATE"),
    Column("NODES", right=True, rank=3),
    Column("TIME LEFT", right=True),
    Column("GATEWAYS", least=12, rank=2),
    Column("REASON", least=12, rank=5),
)
MODELS: Final = (
    Column("MODEL", least=12, tail=True),
    Column("UP", right=True),
    Column("RUN", right=True),
    Column("WAIT", right=True),
    Column("KV", right=True),
    Column("TOKENS/S", right=True),
    Column("PROMPT/S", right=True, rank=5),
    Column("REQ/S", right=True, rank=6),
    Column("TTFT P50", right=True, rank=2),
    Column("P99", right=True, rank=2),
    Column("ITL P50", right=True, rank=3),
    Column("P99", right=True, rank=3),
    Column("TOKENS/S, 10 MIN", rank=4),
)
INSTANCES: Final = (
    Column("INSTANCE", least=20, tail=True),
    Column("STATUS"),
    Column("FOR", right=True, rank=4),
    Column("NODE", least=8, tail=True, rank=3),
    Column("ADDRESS", rank=8),
    Column("MODEL", least=10, tail=True, rank=7),
    Column("JOB", rank=9),
    Column("RUN", right=True),
    Column("WAIT", right=True),
    Column("KV", right=True, rank=2),
    Column("TOKENS/S", right=True, rank=1),
    Column("PROMPT/S", right=True, rank=10),
    Column("RESTARTS", right=True, rank=6),
    Column("REASON", least=12, rank=5),
)
MAPS: Final = (
    Column("MAP", least=10, tail=True),
    Column("DONE", right=True),
    Column("OF", right=True),
    Column("FAILED", right=True),
    Column("ROWS/S", right=True, rank=3),
    Column("TIME LEFT", right=True),
    Column("HOST", least=8, rank=2),
)
ERRORS: Final = (
    Column("TIME"),
    Column("INSTANCE", least=12, tail=True),
    Column("STATUS", rank=1),
    Column("ERROR", least=16),
)


def job_row(job: Job, now: float) -> list[Cell]:
    """Return the cells of `JOBS`."""
    left = None if job.walltime_end is None else max(0.0, job.walltime_end - now)
    then = f"then {job.successor}" if job.successor else ""
    return [
        Cell(job.handle),
        Cell(job.name),
        Cell(job.service or NOTHING),
        Cell(job.state, STYLES.get(job.state, "")),
        Cell(str(job.nodes)),
        Cell(
            NOTHING if left is None else clock_text(left),
            "bold red" if left is not None and left < SOON_SECONDS else "",
        ),
        Cell(", ".join(job.gateways) or NOTHING),
        Cell(job.reason.partition("\n")[0] or then),
    ]


def model_row(model: Model, now: float) -> list[Cell]:
    """Return the cells of `MODELS`."""
    healthy = model.statuses.get("healthy", 0)
    style = "green" if healthy == model.instances else "yellow" if healthy else "bold red"
    load = model.now
    return [
        Cell(model.name),
        Cell(f"{healthy}/{model.instances}", style),
        Cell(whole(load.running)),
        Cell(whole(load.waiting), "yellow" if load.waiting else ""),
        Cell(share(load.kv_cache)),
        Cell(rate(load.generation_rate)),
        Cell(rate(load.prompt_rate)),
        Cell(rate(load.request_rate)),
        *_latency(load.first_token),
        *_latency(load.inter_token),
        Cell(sparkline(model.history, now), "cyan"),
    ]


def instance_row(each: Instance, now: float) -> list[Cell]:
    """Return the cells of `INSTANCES`."""
    load = each.load
    return [
        Cell(each.id),
        Cell(each.status, STYLES.get(each.status, "")),
        Cell(NOTHING if each.since is None else age(max(0.0, now - each.since))),
        Cell(each.node),
        Cell(f"[{each.host}]:{each.port}" if ":" in each.host else f"{each.host}:{each.port}"),
        Cell(each.model or each.type),
        Cell(each.job),
        Cell(whole(load.running)),
        Cell(whole(load.waiting), "yellow" if load.waiting else ""),
        Cell(share(load.kv_cache)),
        Cell(rate(load.generation_rate)),
        Cell(rate(load.prompt_rate)),
        Cell(str(each.restarts), "yellow" if each.restarts else ""),
        Cell(each.reason.partition("\n")[0]),
    ]


def map_row(run: MapRun, _now: float) -> list[Cell]:
    """Return the cells of `MAPS`."""
    return [
        Cell(run.id),
        Cell(count_text(run.done)),
        Cell(count_text(run.total)),
        Cell(count_text(run.failed), "bold red" if run.failed else ""),
        Cell(rate(run.rate)),
        Cell(NOTHING if run.eta is None else clock_text(run.eta)),
        Cell(run.host),
    ]


def error_row(error: Error, _now: float) -> list[Cell]:
    """Return the cells of `ERRORS`."""
    return [
        Cell(time.strftime("%H:%M:%S", time.localtime(error.time))),
        Cell(error.instance),
        Cell(error.status, STYLES.get(error.status, "")),
        Cell(error.text.partition("\n")[0]),
    ]


def sparkline(points: Sequence[Point], now: float) -> str:
    """Return tokens per second of the last minutes as bars, the highest of them full; a blank where none is known."""
    told: list[list[float]] = [[] for _ in range(BAR_CELLS)]
    for point in points:
        at = int((point.time - now + HISTORY_SECONDS) / HISTORY_SECONDS * BAR_CELLS)
        if point.generation_rate is not None and 0 <= at <= BAR_CELLS:
            told[min(at, BAR_CELLS - 1)].append(point.generation_rate)
    means = [sum(cell) / len(cell) if cell else None for cell in told]
    most = max((mean for mean in means if mean), default=0.0)
    return "".join(" " if mean is None else BARS[_level(mean, most)] for mean in means)


def _level(value: float, most: float) -> int:
    return min(len(BARS) - 1, int(value / most * len(BARS))) if most > 0 and value > 0 else 0


def whole(value: float | None) -> str:
    """Return a count: `950`, `12.3k`."""
    return NOTHING if value is None else count_text(value)


def rate(value: float | None) -> str:
    """Return a rate: `0.52`, `9.5`, `950`, `12.3k`."""
    if value is None:
        return NOTHING
    if 0 < value < 9.95:  # noqa: PLR2004 - rounds to two digits
        return f"{value:.2f}" if value < 0.995 else f"{value:.1f}"  # noqa: PLR2004 - as above
    return count_text(value)


def share(value: float | None) -> str:
    """Return a share of 1 in per cent."""
    return NOTHING if value is None else f"{value:.0%}"


def _latency(found: Quantiles | None) -> tuple[Cell, Cell]:
    if found is None:
        return Cell(NOTHING), Cell(NOTHING)
    return Cell(_duration(found.p50)), Cell(_duration(found.p99))


def _duration(seconds: float) -> str:
    if seconds < 0.9995:  # noqa: PLR2004 - rounds to 1 s
        return f"{seconds * MILLISECONDS:.{0 if seconds >= 0.00995 else 1}f} ms"  # noqa: PLR2004 - two digits
    return f"{seconds:.1f} s"
