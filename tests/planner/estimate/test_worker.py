"""Step times of one worker, from a model and a machine whose times can be reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.estimate.steps import distinct
from aegis.planner.estimator import AIC_012, GUIDE, Estimator
from aegis.planner.operations import Fallback, GenerationAttention, MlaModule, NoData, Overlap, query
from aegis.planner.problem import Load, Mtp, Parallel
from tests.planner.estimate.fakes import CONTEXT, GENERATION, Reckoned, gemm, graph, system, worker

LOAD = Load(isl=1000, osl=101)
APART = Estimator("apart", "current", frozenset({"mla-in-mixed-steps"}))


def module(phase: str) -> MlaModule:
    return MlaModule(
        name=f"{phase}_module",
        phase=phase,  # type: ignore[arg-type]
        heads=8,
        native_heads=8,
        kv_cache="bfloat16",
        fmha="bfloat16",
        gemm="bfloat16",
    )


def test_a_prefill_reads_what_is_not_cached_and_samples_once_a_sequence() -> None:
    # qkv: 1 + 2 x 600 / 1000; attention: 2 x (1000^2 - 400^2) / 1e6; logits: 1 + 2 / 1000
    assert worker().prefill(2, 1000, 400) == pytest.approx(2.2 + 1.68 + 1.002)


def test_a_decode_step_adds_one_token_to_each_sequence() -> None:
    assert worker().decode(50, 1000) == pytest.approx(1.05 + 0.5 + 1.05)


def test_drafted_tokens_are_further_rows_of_the_batch() -> None:
    assert worker(mtp=Mtp(drafted=1)).decode(25, 1000) == pytest.approx(worker().decode(50, 1000))


def test_numbers_and_arrays_give_the_same() -> None:
    one = worker()
    batch, length = np.array([[1], [7]]), np.array([10, 500, 2000])
    expected = [[float(one.decode(int(b), int(at))) for at in length] for b in batch.ravel()]
    assert one.decode(batch, length) == pytest.approx(np.array(expected))


def test_all_tokens_of_an_answer_take_a_step_each() -> None:
    one = worker()
    # 100 steps; their lengths are taken at every 32nd: 1001, 1033, 1065, 1097
    steps = [(1001, 32), (1033, 32), (1065, 32), (1097, 4)]
    assert one.generation_total(8, 1000, 101) == pytest.approx(
        sum(float(one.decode(8, length)) * count for length, count in steps)
    )
    assert one.generation_total(np.array([1, 8]), 1000, 1) == pytest.approx([0, 0])


def test_accepted_drafts_shorten_an_answer() -> None:
    drafting = worker(mtp=Mtp(drafted=1, accept_rates=(0.6,)))
    every = sum(
        float(drafting.decode(4, at)) * count for at, count in ((1001, 32), (1033, 32), (1065, 32), (1097, 4))
    )
    assert drafting.generation_total(4, 1000, 101) == pytest.approx(every / 1.6)


def test_what_does_not_depend_on_the_length_is_asked_once() -> None:
    on = Reckoned()
    worker(on=on).generation_total(np.array([4, 8, 8]), 1000, 1001)
    sizes = {name: at.tokens.size for name, at in on.asked}
    assert sizes == {"qkv": 2, "logits": 2, "generation_attention": 2 * 32}


@pytest.mark.parametrize(
    ("chunk", "requests", "prompts", "parts"),
    [(1000, 30, 1, 1), (3000, 30, 3, 1), (250, 30, 1, 4), (1000, 0, 1, 1)],
)
def test_a_mixed_step_is_one_run_of_tokens_and_two_kinds_of_attention(
    chunk: int, requests: int, prompts: int, parts: int
) -> None:
    tokens = chunk + requests
    expected = 1 + tokens / 1000 + 1.001 + prompts * 1.0 / parts + requests * 1051 / 1e5
    assert worker().mixed(chunk, requests, LOAD) == pytest.approx(expected)


def test_the_guide_prices_the_attention_of_one_prompt() -> None:
    assert worker(estimator=GUIDE).mixed(3000, 30, LOAD) == pytest.approx(1 + 3.03 + 1.001 + 1 + 0.3153)


def test_cached_prefixes_are_not_read_again() -> None:
    load = Load(isl=1000, osl=101, prefix=400)
    expected = 1 + (2000 + 30 - 800) / 1000 + 1.001 + 2 * 0.84 + 0.3153
    assert worker().mixed(2000, 30, load) == pytest.approx(expected)


def test_a_latent_block_in_one_piece_is_taken_for_one_long_sequence_unless_corrected() -> None:
    fused = graph(
        (gemm("norm"), Fallback(name="block", primary=(module("context"),), otherwise=())),
        (gemm("norm"), Fallback(name="block", primary=(module("generation"),), otherwise=())),
    )
    flawed, corrected = worker(fused), worker(fused, estimator=APART)
    # one sequence of 2030 tokens, no decoding; apart: two of 1000, and 30 that decode
    assert flawed.mixed(2000, 30, LOAD) == pytest.approx(3.03 + 2.03**2)
    assert corrected.mixed(2000, 30, LOAD) == pytest.approx(3.03 + 2 * 1.0 + 0.3153)


def test_the_correction_prices_one_piece_as_its_parts_are_priced() -> None:
    parts = worker(graph((gemm("norm"), CONTEXT), (gemm("norm"), GENERATION)))
    piece = worker(
        graph((gemm("norm"), module("context")), (gemm("norm"), module("generation"))), estimator=APART
    )
    chunk, requests = np.array([1000, 2000, 500]), np.array([[1], [40]])
    assert piece.mixed(chunk, requests, LOAD) == pytest.approx(parts.mixed(chunk, requests, LOAD))


def test_a_breakdown_adds_up_to_the_step() -> None:
    block = Fallback(name="block", primary=(module("context"),), otherwise=(gemm("down"), CONTEXT))
    both = Overlap(name="experts", first=(gemm("one"),), second=(gemm("two"), gemm("three")))
    of = graph((block, both, gemm("logits", sampled=True)))
    for on in (Reckoned(), Reckoned(lacks=MlaModule)):
        one = worker(of, on=on)
        parts = one.breakdown("prefill", LOAD, batch=3)
        assert sum(parts.values()) == pytest.approx(float(one.prefill(3, 1000)))
        assert ("down" in parts) == (on.lacks is MlaModule)
        assert "experts" in parts
        mixed = one.breakdown("mixed", LOAD, batch=9, context_tokens=2000)
        assert sum(mixed.values()) == pytest.approx(float(one.mixed(2000, 9, LOAD)))
        decode = one.breakdown("decode", LOAD, batch=9)
        assert sum(decode.values()) == pytest.approx(float(one.decode(9, 1051)))


def test_a_missing_table_is_told() -> None:
    with pytest.raises(NoData, match="generation_attention"):
        worker(on=Reckoned(lacks=GenerationAttention)).decode(1, 100)


def test_a_cache_travels_at_the_speed_of_the_links_between_nodes() -> None:
    one = worker(on=Reckoned(system(inter_node_bandwidth=2**30, p2p_latency=0.001)))
    assert one.kv_transfer(Load(isl=4096, osl=1)) == pytest.approx(250 + 1)
    halves = worker(on=one.performance, split=Parallel(pp=2))  # type: ignore[arg-type]
    assert halves.kv_transfer(Load(isl=4096, osl=1)) == pytest.approx(125 + 1)


def test_a_label_names_the_splits() -> None:
    assert worker().label == "small trtllm tp 1"
    assert worker(split=Parallel(dp=4, moe_ep=4)).label == "small trtllm dp 4 moe_ep 4"
    assert worker(estimator=AIC_012).progress == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), min_size=1, max_size=30))
def test_different_points_are_found_and_put_back(points: list[tuple[int, int]]) -> None:
    tokens, batch = (np.array(column) for column in zip(*points, strict=True))
    at = query(tokens=tokens, batch=batch, length=7)
    found, index = distinct(at)
    assert found.tokens.size == len({*points})
    assert (found.tokens[index] == tokens).all()
    assert (found.batch[index] == batch).all()


def test_keys_too_large_to_number_are_kept_as_they_are() -> None:
    far = np.array([0, 2**40])
    found, index = distinct(query(tokens=far, batch=far, length=1))
    assert (found.tokens[index] == far).all()
