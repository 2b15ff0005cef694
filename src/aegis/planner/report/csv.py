"""CSV files of configurations: best_config_topn.csv and pareto.csv of the guide's tree."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from aegis.planner.report.document import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Candidate, ModeAnswer
    from aegis.planner.task import Experiment

# Columns that the tables of the guide's time did not have.
_NEWER = frozenset({"prefix", "request_latency", "cp", "(p)cp", "(d)cp"})


def best_csv(experiment: Experiment, answer: ModeAnswer, top_n: int | None = None) -> str:
    """Return best_config_topn.csv: the ranked configurations, at most `top_n`."""
    return _csv(experiment, answer.best[:top_n], answer.frontier)


def pareto_csv(experiment: Experiment, answer: ModeAnswer) -> str:
    """Return pareto.csv: the frontier, slowest user first."""
    return _csv(experiment, answer.frontier, answer.frontier)


def _csv(experiment: Experiment, candidates: Sequence[Candidate], frontier: Sequence[Candidate]) -> str:
    """Return rows with a header; under the guide's rules its columns, with the row of the frontier as `index`."""
    table = rows(experiment, candidates)
    guide = experiment.estimator.rules == "guide"
    if guide:
        place = {candidate: index for index, candidate in enumerate(frontier)}
        table = [
            {"index": place.get(candidate, ""), **{key: row[key] for key in row if key not in _NEWER}}
            for candidate, row in zip(candidates, table, strict=True)
        ]
    text = io.StringIO()
    if table:
        columns = list(
            dict.fromkeys(column for row in table for column in row)
        )  # intervals: not of every row
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return text.getvalue()
