"""Whole questions against aiconfigurator 0.12.0: the 48 recorded ones, and as many of other models, loads and systems."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aegis.planner import defaults
from aegis.planner.plan import Plan, estimator_of, questions, run, targets_of
from aegis.planner.problem import Load, Mtp, Tuning

FIXTURES = Path(__file__).parents[1] / "fixtures" / "aiconfigurator"
SIZES = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")
# Tables whose best throughput differs by more than 3 %, and why.
EXPLAINED = {
    "glm5_b200_vllm disagg": "Nothing meets the target, so the nearest counts. Of replicas with equal throughput only "
    "five are kept for each target: the recorded tool keeps whichever an unstable sort puts first, so it lost one "
    "that is 0.5 ms nearer.",
}

Splits = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    """One configuration of a ranked table."""

    splits: Splits
    throughput: float  # tokens/s of each of all GPUs


class Outcome(NamedTuple):
    """One case: ranked tables by mode, as they were recorded and as they are planned."""

    name: str
    recorded: dict[str, list[Row]]
    planned: dict[str, list[Row]]
    recorded_winner: str | None
    planned_winner: str | None


class Table(NamedTuple):
    """One mode of one case, where either has an answer."""

    name: str
    recorded: list[Row]
    planned: list[Row]

    @property
    def error(self) -> float:
        """Relative difference of the best throughput."""
        if not self.recorded or not self.planned:
            return float("inf")
        wanted = self.recorded[0].throughput
        return abs(self.planned[0].throughput - wanted) / wanted if wanted else 0.0

    @property
    def same_split(self) -> bool:
        """Whether the first row is split alike. Several may have the same throughput: any of them may be first."""
        return bool(self.recorded and self.planned) and self.planned[0].splits == self.recorded[0].splits


def ask(args: dict[str, Any]) -> Plan:
    drafted = args.get("nextn", 0)
    return run(
        defaults.fill(
            questions(
                args["model_path"],
                args["total_gpus"],
                args["system"],
                decode_system=args.get("decode_system"),
                backend=args.get("backend"),
                backend_version=None,
                load=Load(
                    isl=args["isl"],
                    osl=args["osl"],
                    prefix=args.get("prefix", 0),
                    max_seq_len=args.get("max_seq_len"),
                ),
                targets=targets_of(
                    args["ttft"],
                    args["tpot"],
                    args.get("request_latency"),
                    strict=args.get("strict_sla", False),
                ),
                tuning=Tuning(
                    free_memory_fraction=args.get("free_gpu_memory_fraction"),
                    chunked_prefill=args.get("enable_chunked_prefill", False),
                ),
                mtp=Mtp.accepting(drafted, args["nextn_accepted"]) if drafted else None,
                estimator=estimator_of("aic-0.12"),
                database_mode=args.get("database_mode", "SILICON"),
            )
        ),
        compared=True,
    )


def outcome(case: dict[str, Any], recorded: dict[str, list[Row]]) -> Outcome:
    found = ask(case["args"])
    planned = {
        answer.mode: [
            Row(
                tuple(
                    tuple(getattr(each.parallel, size) for size in SIZES[:5]) for each in candidate.workers
                ),
                candidate.cluster_throughput(case["args"]["total_gpus"]),
            )
            for candidate in answer.best
        ]
        for answer in found.answers
    }
    return Outcome(
        name=case["id"],
        recorded=recorded,
        planned={mode: rows for mode, rows in planned.items() if rows},
        recorded_winner=case.get("chosen") if recorded else None,
        planned_winner=None if found.chosen is None else found.answers[found.chosen].mode,
    )


def rows_of_the_grid(case: dict[str, Any]) -> dict[str, list[Row]]:
    def splits(row: dict[str, Any], mode: str) -> Splits:
        kinds = ("",) if mode == "agg" else ("(p)", "(d)")
        return tuple(tuple(row[kind + size] for size in SIZES[:5]) for kind in kinds)

    tables = case["best"] if case["ok"] else {}
    return {
        mode: [Row(splits(row, mode), row["tokens/s/gpu_cluster"]) for row in table]
        for mode, table in tables.items()
        if table
    }


def rows_of_more(case: dict[str, Any]) -> dict[str, list[Row]]:
    return {
        mode: [
            Row(
                tuple(tuple(split[:5]) for split in row["splits"]),
                row["throughput"],
            )
            for row in table
        ]
        for mode, table in case["best"].items()
    }


@pytest.fixture(scope="module", params=["the recorded grid", "more"])
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    if request.param == "more":
        cases = json.loads(lzma.decompress((FIXTURES / "grid-more.json.xz").read_bytes()))["cases"]
        return [outcome(case, rows_of_more(case)) for case in cases]
    with gzip.open(FIXTURES / "grid-0.12.0.json.gz") as stream:
        return [outcome(case, rows_of_the_grid(case)) for case in json.load(stream)["cases"]]


@pytest.fixture
def tables(outcomes: list[Outcome]) -> list[Table]:
    return [
        Table(f"{each.name} {mode}", each.recorded.get(mode, []), each.planned.get(mode, []))
        for each in outcomes
        for mode in ("agg", "disagg")
        if mode in each.recorded or mode in each.planned
    ]


def test_the_best_throughput_is_the_recorded_one_but_for_what_is_explained(tables: list[Table]) -> None:
    close = [each for each in tables if each.error <= 1e-3]
    assert len(close) >= 0.9 * len(tables), [each.name for each in tables if each not in close]
    far = {each.name for each in tables if each.error > 0.03}
    assert far <= EXPLAINED.keys()


def test_the_same_mode_wins(outcomes: list[Outcome]) -> None:
    other = [each.name for each in outcomes if each.recorded_winner != each.planned_winner]
    assert len(other) <= 0.02 * len(outcomes), other


def test_the_first_row_is_split_as_it_was_recorded(tables: list[Table]) -> None:
    other = [each.name for each in tables if not each.same_split]
    assert len(other) <= 0.1 * len(tables), other


def test_where_nothing_was_recorded_nothing_is_planned(outcomes: list[Outcome]) -> None:
    """Who finds nothing: models that fit nowhere, formats nobody measured, targets beyond reach."""
    assert [each.name for each in outcomes if bool(each.recorded) != bool(each.planned)] == []
