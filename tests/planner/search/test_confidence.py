"""Ranking under uncertainty: what cannot be told apart is ordered by what is certain of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.answer import Candidate, interval
from aegis.planner.problem import Parallel, Targets
from aegis.planner.search.pick import Known, by_confidence, pick, told_apart
from tests.planner.emit.conftest import candidate, pair, plan_of, workers

VALUES = st.floats(min_value=0.0, max_value=1e4)
KNOWN = st.builds(Known, VALUES, st.floats(min_value=0.0, max_value=0.5))
CERTAIN = st.builds(Known, VALUES, st.just(0.0))
SHUFFLED = st.lists(KNOWN, max_size=12).flatmap(
    lambda figures: st.tuples(st.just(figures), st.permutations(figures))
)


def itself(figure: Known) -> Known:
    return figure


def of(tp: int, throughput: float, spread: float = 0.0, batch: int = 8, backend: str = "vllm") -> Candidate:
    worker = workers(parallel=Parallel(tp=tp), batch=batch, backend=backend)
    return candidate(worker, tokens_per_s_gpu=throughput, spread=spread, tpot=10.0)


def ranked(*candidates: Candidate) -> tuple[Candidate, ...]:
    return pick(candidates, total_gpus=8, targets=Targets(), rules="current").best


@pytest.mark.parametrize(
    ("better", "other", "apart"),
    [
        (Known(1000, 0.1), Known(900, 0.1), True),  # ln(1000 / 900) is 0.105, the limit 0.036
        (Known(1000, 0.1), Known(970, 0.1), False),
        (Known(1000, 0.45), Known(900, 0.1), False),
        (Known(1000, 0.1), Known(1000, 0.1), False),
        (Known(1000, 0.0), Known(999, 0.4), True),  # one is not known: they are taken as they are
        (Known(1000, 0.4), Known(999, 0.0), True),
        (Known(0, 0.1), Known(0, 0.1), True),
    ],
)
def test_figures_are_told_apart_by_both_their_spreads(better: Known, other: Known, apart: bool) -> None:
    assert told_apart(better, other) == apart


@given(SHUFFLED)
def test_the_order_does_not_depend_on_that_of_the_input_and_nothing_is_lost(
    lists: tuple[list[Known], list[Known]],
) -> None:
    figures, mixed = lists
    ordered = by_confidence(figures, itself)
    assert by_confidence(mixed, itself) == ordered
    assert sorted(ordered) == sorted(figures)


@given(st.lists(CERTAIN, max_size=12))
def test_without_spreads_the_order_is_that_of_the_figures(figures: list[Known]) -> None:
    assert by_confidence(figures, itself) == sorted(figures, key=lambda each: -each.value)


@given(st.lists(KNOWN, min_size=1, max_size=12))
def test_the_first_is_the_best_or_an_equal_of_it_that_is_better_known(figures: list[Known]) -> None:
    first, best = by_confidence(figures, itself)[0], max(figures)
    assert first.value == best.value or not told_apart(best, first)
    assert interval(*first)[0] >= interval(best.value, max(each.spread for each in figures))[0]


def test_of_two_equals_the_better_known_comes_first() -> None:
    known, unknown, worse = of(2, 980, 0.05), of(4, 1000, 0.35), of(8, 700, 0.05)
    assert ranked(worse, unknown, known) == (known, unknown, worse)
    assert ranked(of(4, 1000), of(2, 980), of(8, 700)) == (of(4, 1000), of(2, 980), of(8, 700))


def test_between_batches_of_the_same_workers_throughput_decides() -> None:
    large, small = of(4, 1000, 0.12, batch=64), of(4, 990, 0.05, batch=56)
    assert ranked(small, large) == (large,)


def test_the_better_known_engine_of_a_split_is_shown() -> None:
    known, unknown = of(4, 980, 0.05, backend="trtllm"), of(4, 1000, 0.35)
    assert ranked(unknown, known) == (known,)
    better = of(2, 1080, 0.35)  # which cannot be told apart from the unknown one, and can from the known one
    assert ranked(unknown, known, better) == (better, known)


def test_the_better_known_of_two_modes_is_chosen() -> None:
    split, whole = pair(), candidate(tokens_per_s_gpu=755.0)
    assert plan_of(split, whole).best == split
    vague = candidate(*split.workers, tokens_per_s_gpu=761.0, spread=0.4)
    certain = candidate(tokens_per_s_gpu=755.0, spread=0.05)
    assert plan_of(vague, certain).best == certain
