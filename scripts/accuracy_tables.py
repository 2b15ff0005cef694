"""The tables of docs/accuracy.md, as lines of Markdown. Pure; `draw_accuracy.py` puts them into the page."""

from __future__ import annotations

import csv
import lzma
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from aegis.planner.problem import BACKENDS
from aegis.planner.silicon.deployments import SHIPPED, flaw, in_fit_half, shipped
from aegis.planner.silicon.fit import rows
from aegis.planner.silicon.kriging import LEVELS, group
from aegis.planner.silicon.mechanism import CLASSES, KINDS
from aegis.planner.silicon.score import by_group, score

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.fitted import Fitted
    from aegis.planner.silicon.score import Outcome

FEW: Final = 20  # rows of a group that say little
USERS: Final = (4, 16, 64, 256, 1024)
CALLED: Final[dict[str, str]] = dict(zip(BACKENDS, ("TensorRT-LLM", "vLLM", "SGLang"), strict=True))
SINGLE: Final = "a row"  # left out in turn
ANEW: Final = "a system"
ANEW_ALONE: Final = "a system, mechanism alone"
IN_MODES: Final = (SINGLE, ANEW, ANEW_ALONE)


def grouped(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a table of errors by what rows have in common."""
    yield "| | rows | TPOT: measured / predicted | error | TTFT: measured / predicted | error |"
    yield "|---|--:|--:|--:|--:|--:|"
    keys: Mapping[str, Callable[[Deployment], tuple[str, ...]]] = {
        "all": lambda _: ("",),
        "mode": lambda row: (_mode(row),),
        "engine": lambda row: (CALLED[row.backend],),
        "system": lambda row: (row.system,),
        "version": lambda row: (f"{CALLED[row.backend]} {row.version or 'not told'}",),
        "model": lambda row: (row.model.split("/")[-1],),
        "precision": lambda row: (row.precision or "not told",),
        "users": lambda row: (_users(row),),
        "isl / osl": lambda row: (_lengths(row),),
    }
    for name, key in keys.items():
        yield f"| **{name}** | | | | | |" if name != "all" else _ratios("all rows", outcomes)
        for (kind,), found in by_group(outcomes, key).items():
            if len(found) >= FEW and name != "all":
                yield _ratios(kind.split(" ", 1)[1] if name in {"users", "isl / osl"} else kind, found)


def _ratios(name: str, outcomes: Sequence[Outcome]) -> str:
    cells = []
    for figure in ("tpot", "ttft"):
        ratio = [each.measured(figure) / each.predicted(figure) for each in outcomes]
        cells += [
            f"{statistics.median(ratio):.2f}",
            f"{statistics.median(abs(1 / each - 1) for each in ratio):.0%}",
        ]
    return f"| {name} | {len(outcomes):,} | {' | '.join(cells)} |"


def _mode(row: Deployment) -> str:
    if row.prefill is None:
        return "aggregated"
    return "disaggregated" if row.decode_workers else "disaggregated, workers not told"


def _users(row: Deployment) -> str:
    """Return the band of users, after a number that sorts it."""
    band = sum(row.concurrency > each for each in USERS)
    text = f"above {USERS[-1]:,}" if band == len(USERS) else f"up to {USERS[band]:,}"
    return f"{band} {text}"


def _lengths(row: Deployment) -> str:
    known = {
        (1024, 1024): "0 1,024 / 1,024",
        (8192, 1024): "1 8,192 / 1,024",
        (1024, 8192): "2 1,024 / 8,192",
    }
    return known.get((row.isl, row.osl), "3 others")


def crossed(stages: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield a table of errors by what was left out."""
    yield (
        "| left out in turn | TPOT, median | mean | 9 of 10 within | TTFT, median | mean | tokens/s/GPU, median |"
        " order | TPOT in 80% | TTFT in 80% | tokens/s/GPU in 80% |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, outcomes in stages.items():
        yield _scored(name, outcomes)
        for mode, found in by_mode(outcomes).items() if name in IN_MODES else ():
            yield _scored(f"{name}, {mode}", found)


def by_mode(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Return outcomes by mode, in words."""
    return {mode: found for (mode,), found in by_group(outcomes, lambda row: (_mode(row),)).items()}


def _scored(name: str, outcomes: Sequence[Outcome]) -> str:
    sure = outcomes[0].said.spread > 0
    found = score(outcomes)
    errors = [abs(each.predicted("tpot") / each.measured("tpot") - 1) for each in outcomes]
    shares = [found.tpot.median, found.tpot.mean, float(np.quantile(errors, 0.9))]
    shares += [found.ttft.median, found.ttft.mean, found.throughput.median]
    held = [f"{each.held:.0%}" if sure else "" for each in (found.tpot, found.ttft, found.throughput)]
    cells = [*(f"{each:.1%}" for each in shares), f"{found.order or 0:.3f}", *held]
    return f"| {name} | {' | '.join(cells)} |"


def parts(stages: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield a table of what predictions lose without each part of the mechanism, by engine, aggregated."""
    engines = [f"{engine}: {figure}" for engine in CALLED.values() for figure in ("TPOT", "TTFT")]
    yield f"| without | {' | '.join(engines)} |"
    yield f"|---|{'--:|' * len(engines)}"
    for name, outcomes in stages.items():
        yield _by_engine(name, outcomes)


def _by_engine(name: str, outcomes: Sequence[Outcome]) -> str:
    groups = by_group(
        [each for each in outcomes if each.row.prefill is None], lambda row: (CALLED[row.backend],)
    )
    scores = [score(groups[(engine,)]) for engine in CALLED.values()]
    cells = (f"{error.median:.0%}" for each in scores for error in (each.tpot, each.ttft))
    return f"| {name} | {' | '.join(cells)} |"


def mechanisms(known: Fitted) -> Iterator[str]:
    """Yield a table of what was fitted."""
    names = [*(f"prefill: {kind}" for kind in KINDS), *(f"decode: {kind}" for kind in KINDS)]
    columns = [(engine, kind) for engine in BACKENDS for kind in CLASSES[:2]]
    yield f"| | {' | '.join(f'{CALLED[engine]}, {kind}' for engine, kind in columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    each = [known.mechanisms[engine][kind] for engine, kind in columns]
    for name in names:
        phase, kind = name.split(": ")
        yield f"| {name} | {' | '.join(f'{getattr(one, phase)[kind]:.2f}' for one in each)} |"
    hosts = {
        "host, ms of a step": "step",
        "ms of a step for each request": "request",
        "ms before a request is scheduled": "first",
        "steps until the scheduler looks": "waits",
    }
    for name, field in hosts.items():
        digits = 3 if field == "request" else 1
        yield f"| {name} | {' | '.join(f'{getattr(one.host, field):.{digits}f}' for one in each)} |"


def versions(known: Fitted) -> Iterator[str]:
    """Yield a table of the host's time by version."""
    yield "| engine | the host's ms of steps and requests, times |"
    yield "|---|---|"
    for engine in BACKENDS:
        each = (
            f"{f'`{version}`' if version else 'not told'} {factor:.2f}"
            for version, factor in sorted(known.versions[engine].items())
        )
        yield f"| {CALLED[engine]} | {', '.join(each)} |"


def unproven(known: Fitted) -> Iterator[str]:
    """Yield a table of the groups that are not corrected, with the rows behind them."""
    yield "| not corrected | figure | rows | standard deviation |"
    yield "|---|---|--:|--:|"
    for figure, errors in (("TTFT", known.ttft), ("TPOT", known.tpot)):
        for name, spread in errors.unproven.items():
            rows = sum(group(each.place) == name for each in errors.residuals)
            yield f"| {name} | {figure} | {rows} | {spread:.1f} of the logarithm |"


def levels(known: Fitted) -> Iterator[str]:
    """Yield a table of standard deviations by level and mode: of the part that is the same at all loads, and of the other."""
    figures = {"TPOT": known.tpot.kernels, "TTFT": known.ttft.kernels}
    columns = [f"{name}: {mode}" for name, kernels in figures.items() for mode in kernels]
    yield f"| level | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    every = [kernel for kernels in figures.values() for kernel in kernels.values()]
    words = {"kind": "class of systems", "backend": "engine", "formats": "number formats"}
    for number, level in enumerate(LEVELS):
        name = ", ".join(words.get(each, each) for each in level[1:]) or "all deployments"
        sizes = (f"{_deviation(each.same[number])}, {_deviation(each.alike[number])}" for each in every)
        yield f"| {name} | {' | '.join(sizes)} |"
    yield f"| what no level explains | {' | '.join(_deviation(each.noise) for each in every)} |"


def _deviation(variance: float) -> str:
    return f"{np.sqrt(variance):.0%}"


def widening(known: Fitted) -> Iterator[str]:
    """Yield a table of the factors on standard deviations, and of what is not corrected on a new system."""
    yield "| mode | figure | factor | once more for a new system | not corrected there |"
    yield "|---|---|--:|--:|---|"
    for mode in known.tpot.kernels:
        for name, errors in (("TPOT", known.tpot), ("TTFT", known.ttft)):
            kernel = errors.kernels[mode]
            apart = ", ".join(CALLED[engine] for engine in kernel.apart)
            yield f"| {mode} | {name} | {kernel.widened:.2f} | {kernel.further:.2f} | {apart} |"


def counts() -> Iterator[str]:
    """Yield a table of what became of the rows of the fit half."""
    half = [row for row in shipped() if in_fit_half(row.id)]
    raw = {
        row["id"]: row for row in csv.DictReader(lzma.decompress(SHIPPED.read_bytes()).decode().splitlines())
    }
    mended = 0
    for row in half:
        sizes = raw[row.id]["tp_size"], raw[row.id]["attention_dp_size"]
        mended += row.split.dp > 1 and row.prefill is None and sizes != (str(row.split.tp), str(row.split.dp))
    flaws = Counter(found for row in half if (found := flaw(row)))
    yield "| | rows |"
    yield "|---|--:|"
    yield f"| in the table | {len(shipped()):,} |"
    yield f"| in the fit half | {len(half):,} |"
    for name, many in flaws.most_common():
        yield f"| left out: {name} | {many} |"
    yield f"| left out: the same measurement once more | {len(half) - flaws.total() - len(rows())} |"
    yield f"| fitted to | {len(rows()):,} |"
    yield f"| split mended, of the fit half | {mended} |"


def same_question(chosen: Sequence[Deployment]) -> Iterator[str]:
    """Yield a table of how far measurements of what is told as the same are apart."""
    yield "| mode | questions asked more than once | rows | TPOT more than 20% apart | mean error that is left at best, TPOT | TTFT |"
    yield "|---|--:|--:|--:|--:|--:|"
    for mode in ("aggregated", "disaggregated, workers not told"):
        groups: dict[Hashable, list[Deployment]] = {}
        for row in chosen:
            if _mode(row) == mode:
                groups.setdefault(repr(replace(row, id="", ttft=1.0, tpot=1.0)), []).append(row)
        twice = [group for group in groups.values() if len(group) > 1]
        apart = sum(max(row.tpot for row in group) > 1.2 * min(row.tpot for row in group) for group in twice)
        best = [f"{_best(twice, figure):.0%}" for figure in ("tpot", "ttft")]
        yield f"| {mode} | {len(twice)} | {sum(map(len, twice))} | {apart} | {' | '.join(best)} |"


def _best(groups: Iterable[Sequence[Deployment]], figure: str) -> float:
    """Return the mean error of that one answer for each group that has the least."""
    errors: list[float] = []
    for alike in groups:
        values = np.array([getattr(row, figure) for row in alike])
        errors += min((np.abs(value / values - 1) for value in values), key=np.sum).tolist()
    return statistics.mean(errors)
