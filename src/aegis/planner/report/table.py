"""Ranked configurations as the guide's tables show them: characters for a terminal, HTML for a notebook."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from aegis.planner.report.words import ALIKE, INTERVAL, between
from aegis.planner.search.pick import known, told_apart

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from aegis.planner.answer import Candidate, ModeAnswer, Workers
    from aegis.planner.plan import Plan
    from aegis.planner.task import Experiment

NOTE = f"{ALIKE} cannot be told apart from the first: the better known of equals stands first"
_ANSI = re.compile(r"\033\[\d+m")


class Style(NamedTuple):
    """How text is set off; both empty where output is no terminal."""

    on: bool = False

    def bold(self, text: str) -> str:
        """Return the text in bold."""
        return f"\033[1m{text}\033[0m" if self.on else text

    def underlined(self, value: object) -> str:
        """Return a value underlined."""
        return f"\033[4m{value}\033[0m" if self.on else str(value)


def table(
    experiment: Experiment,
    ranked: Sequence[Candidate],
    style: Style = Style(),  # noqa: B008 - a constant
    alike: Container[int] = (),
) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of an experiment's ranked configurations, with the guide's columns.

    Where intervals are known there are two columns more: the interval, marked at the ranks `alike`, and how many
    measured deployments stand behind it.
    """
    sure = any(each.spread for each in ranked)
    shown = _Shown(experiment, style, alike if sure else None)
    pick = shown.agg if experiment.mode == "agg" else shown.disagg
    lines = [pick(rank, each) for rank, each in enumerate(ranked, start=1)]
    return (list(lines[0]) if lines else []), [list(line.values()) for line in lines]


def boxed(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return an ASCII table with centred cells; one that is wider than `width` goes on below, first column repeated."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(_length(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        _box([[line[column] for column in block] for line in lines], [widths[column] for column in block])
        for block in _blocks(widths, width)
    )


def html(plan: Plan) -> str:
    """Return the ranked configurations of every experiment as HTML tables."""
    parts = []
    for experiment, answer in zip(plan.experiments, plan.answers, strict=True):
        alike = equals(experiment, answer)
        head, rows = table(experiment, answer.best, alike=alike)
        names = "".join(f"<th>{escape(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        lines = [answer.why_none, NOTE if alike else None]
        said = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
        parts.append(f"<h4>{escape(answer.name)}</h4>{said}<table><tr>{names}</tr>{body}</table>")
    return "".join(parts)


def equals(experiment: Experiment, answer: ModeAnswer) -> frozenset[int]:
    """Return the ranks (from 2) of configurations whose throughput cannot be told apart from that of the first.

    None where the targets are missed: what comes nearest to them is not ranked by throughput.
    """
    figures = [known(each, experiment.total_gpus) for each in answer.best if answer.meets_targets]
    return frozenset(
        rank for rank, each in enumerate(figures[1:], start=2) if not told_apart(figures[0], each)
    )


class _Shown:
    """The cells of one experiment's configurations."""

    def __init__(self, experiment: Experiment, style: Style, alike: Container[int] | None) -> None:
        self.total = experiment.total_gpus
        self.experts = experiment.model.has_experts
        self.several = len(experiment.searches) > 1
        self.slowest = experiment.targets.request_latency is not None
        self.style = style
        self.alike = alike  # None: no interval is known

    def agg(self, rank: int, candidate: Candidate) -> dict[str, str]:
        """Return the cells of an aggregated configuration by column."""
        return {**self._shared(rank, candidate), **self._workers("", candidate.workers[0])}

    def disagg(self, rank: int, candidate: Candidate) -> dict[str, str]:
        """Return the cells of a disaggregated configuration by column."""
        cells = self._shared(rank, candidate)
        for prefix, workers in zip(("(p)", "(d)"), candidate.workers, strict=True):
            cells |= {f"{prefix}workers": str(workers.count), **self._workers(prefix, workers)}
        return cells

    def _shared(self, rank: int, candidate: Candidate) -> dict[str, str]:
        replicas, gpus = candidate.replicas(self.total), candidate.gpus
        throughput = candidate.cluster_throughput(self.total)
        cells = {"Rank": str(rank)}
        if self.several:
            cells["backend"] = candidate.workers[0].backend
        cells |= {
            self.style.bold("tokens/s/gpu"): self.style.bold(f"{throughput:.2f}"),
            **self._certainty(rank, candidate, throughput),
            "tokens/s/user": f"{candidate.tokens_per_s_user:.2f}",
            "TTFT": f"{candidate.ttft:.2f}",
        }
        if self.slowest:
            cells["request_latency"] = f"{candidate.request_latency:.2f}"
        parts = "+".join(f"{each.count}x{each.parallel.gpus}" for each in candidate.workers)
        return cells | {
            "concurrency": f"{candidate.concurrency * replicas}(={candidate.concurrency}x{replicas})",
            "total_gpus(used)": f"{self.total} ({replicas * gpus}={replicas}x{gpus})",
            "replicas": str(replicas),
            "gpus/replica": str(gpus) if candidate.mode == "agg" else f"{gpus} (={parts})",
        }

    def _certainty(self, rank: int, candidate: Candidate, throughput: float) -> dict[str, str]:
        if self.alike is None:
            return {}
        return {
            INTERVAL: between(throughput, candidate.spread) + f" {ALIKE}" * (rank in self.alike),
            "measured": str(candidate.measured) if candidate.spread else "",
        }

    def _workers(self, prefix: str, workers: Workers) -> dict[str, str]:
        split, mark = workers.parallel, self.style.underlined
        sizes = {"tp": split.tp, "pp": split.pp}
        if self.experts:
            sizes["dp"] = split.dp
        if split.cp > 1:
            sizes["cp"] = split.cp
        factors = "x".join(mark(size) for size in sizes.values())
        name = "".join(f"{key}{mark(size)}" for key, size in sizes.items())
        experts = f"etp{split.moe_tp}ep{split.moe_ep}" if self.experts else ""
        return {
            f"{prefix}gpus/worker": f"{split.gpus} (={factors})",
            f"{prefix}parallel": f"{name}{experts}",
            f"{prefix}bs": str(workers.batch),
        }


def _blocks(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Return the columns of each block that fits; the first column stands in all of them."""
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        used = sum(widths[each] + 3 for each in (*blocks[-1], column)) + 1
        if width and used > width and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def _box(lines: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    rule = f"+{'+'.join('-' * (width + 2) for width in widths)}+"
    rows = [
        f"|{'|'.join(f' {_centred(cell, width)} ' for cell, width in zip(line, widths, strict=True))}|"
        for line in lines
    ]
    return "\n".join([rule, rows[0], rule, *rows[1:], rule])


def _centred(text: str, width: int) -> str:
    """Centre a cell; an odd space goes to the left of text of even length, else to the right."""
    free = width - _length(text)
    left = (free + (1 - _length(text) % 2)) // 2
    return f"{'':{left}}{text}{'':{free - left}}"


def _length(text: str) -> int:
    return len(_ANSI.sub("", text))
