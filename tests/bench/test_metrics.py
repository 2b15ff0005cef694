"""Figures by vLLM's definitions, held against a result that `vllm bench serve` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.bench.metrics import Spread, measure
from aegis.bench.records import Records, joined, packed, unpacked

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / name).read_text())
    return found


def records_of(result: dict[str, Any]) -> Records:
    """The per-request lists of a detailed result."""
    itls = result["itls"]
    return Records(
        prompt=np.arange(len(itls)),
        start=np.array(result["start_times"]),
        ttft=np.array(result["ttfts"]),
        latency=np.array(result["latencies"]),
        input_tokens=np.array(result["input_lens"]),
        output_tokens=np.array(result["output_lens"]),
        gaps=np.array([len(gaps) for gaps in itls]),
        itl=np.array([gap for gaps in itls for gap in gaps]),
        errors=("",) * len(itls),
    )


def made(*errors: str, output: int = 3) -> Records:
    """Requests 0, 1, ... of which the second row has two gaps, the third three, and so on."""
    count = len(errors)
    gaps = np.arange(1, count + 1)
    return Records(
        prompt=np.arange(count),
        start=np.arange(count).astype(np.float64),
        ttft=np.full(count, 0.1),
        latency=np.full(count, 0.5),
        input_tokens=np.full(count, 7),
        output_tokens=np.full(count, output),
        gaps=gaps,
        itl=np.repeat(np.arange(count) * 0.01, gaps),
        errors=errors,
    )


def test_every_figure_is_that_of_vllm() -> None:
    result = load("bench_inf_detailed.json")
    figures = measure(records_of(result), result["duration"]).as_vllm()
    shared = figures.keys() & result.keys()
    assert {name: figures[name] for name in shared} == pytest.approx({name: result[name] for name in shared})
    spreads = {
        f"{figure}_{name}_ms"
        for name in ("ttft", "tpot", "itl", "e2el")
        for figure in Spread.__struct_fields__
    }
    assert figures.keys() - shared == {name for name in spreads if name.startswith("p90")}


def test_a_run_of_failures_alone_is_that_of_vllm() -> None:
    result = load("bench_badmodel.json")
    figures = measure(made(*["no such model"] * 5), result["duration"]).as_vllm()
    shared = figures.keys() & result.keys()
    assert {name: figures[name] for name in shared} == {name: result[name] for name in shared}


def test_failed_requests_count_nowhere_else() -> None:
    found = measure(made("", "cut", ""), 2.0)
    assert (found.completed, found.failed, found.total_output_tokens, found.request_throughput) == (
        2,
        1,
        6,
        1.0,
    )
    assert found.itl.mean == pytest.approx((0 + 3 * 20) / 4)  # ms: the gaps of rows 0 and 2


def test_answers_of_one_token_have_no_time_per_token() -> None:
    assert measure(made("", output=1), 1.0).tpot == Spread()


def test_nothing_at_all() -> None:
    found = measure(joined([]), 0.0)
    assert (found.completed, found.failed, found.request_throughput, found.ttft) == (0, 0, 0.0, Spread())


def test_parts_are_joined_in_the_order_of_prompts() -> None:
    whole = made("", "a", "", "b", "")
    parts = [_rows(whole, [1, 3]), _rows(whole, [4, 0, 2])]
    again = joined([unpacked(packed(part)) for part in parts])
    assert again.errors == whole.errors
    for name in Records.__struct_fields__:
        assert list(getattr(again, name)) == list(getattr(whole, name)), name


def _rows(records: Records, chosen: list[int]) -> Records:
    ends = np.cumsum(records.gaps)
    itl = [records.itl[ends[row] - records.gaps[row] : ends[row]] for row in chosen]
    columns = {
        name: getattr(records, name)[chosen]
        for name in Records.__struct_fields__
        if name not in {"itl", "errors"}
    }
    return Records(**columns, itl=np.concatenate(itl), errors=tuple(records.errors[row] for row in chosen))
