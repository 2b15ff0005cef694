"""What a GPU holds, and what an engine gives its KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.estimate.memory import static_fraction
from aegis.planner.estimator import AIC_012, CORRECTED, GUIDE
from aegis.planner.models.graph import KvGroup
from aegis.planner.problem import Load, Mtp, Parallel, Tuning
from tests.planner.estimate.fakes import GIB, Reckoned, graph, system, worker

LOAD = Load(isl=3000, osl=1000)
MIB = 2**20


def test_a_decode_worker_holds_weights_cache_runtime_and_at_least_70_mib_of_activations() -> None:
    held = worker().memory(LOAD, role="decode", batch=np.array([1, 64]))
    assert held.weights == 10
    assert held.other == 2
    assert held.activations == pytest.approx([70 / 1024] * 2)
    assert held.kv_cache == pytest.approx(np.array([1, 64]) * 4000 * 2**16 / GIB)
    assert held.total == pytest.approx(12 + 70 / 1024 + held.kv_cache)


@pytest.mark.parametrize(
    ("family", "backend", "tp", "coefficient"),
    [
        ("LLAMA", "trtllm", 1, 11),
        ("MOE", "vllm", 2, 13),
        ("GPT", "trtllm", 16, 5),
        ("OTHER", "trtllm", 2, 6),
        ("LLAMA", "trtllm", 3, 6.5),
        ("LLAMA", "sglang", 1, 14 * 1.15),
        ("MOE", "sglang", 8, 13 * 1.15),
    ],
)
def test_activations_follow_the_engine_the_family_and_the_split(
    family: str, backend: str, tp: int, coefficient: float
) -> None:
    one = worker(graph(family=family), backend=backend, split=Parallel(tp=tp))
    held = one.memory(Load(isl=100_000, osl=1), role="prefill", batch=1)
    assert held.activations == pytest.approx(2 * 100_000 * 512 * coefficient / GIB)


@pytest.mark.parametrize(("backend", "width"), [("trtllm", 512), ("vllm", 512), ("sglang", 2048 * 1.15)])
def test_experts_with_block_scales_need_a_workspace(backend: str, width: float) -> None:
    of = graph(family="DEEPSEEK", hidden=2048, experts=256, topk=8)
    plain = worker(graph(family="MOE"), backend=backend, split=Parallel(dp=2, moe_ep=2))
    experts = worker(of, backend=backend, split=Parallel(dp=2, moe_ep=2))
    load = Load(isl=50_000, osl=1)
    more = (
        experts.memory(load, role="prefill", batch=1).activations
        - plain.memory(load, role="prefill", batch=1).activations
    )
    assert more == pytest.approx(50_000 * width * 2 * 256 * 8 / 2 / 128 * 4 / GIB)


def test_windowed_layers_keep_no_more_than_their_window() -> None:
    of = graph(kv_groups=(KvGroup(100.0), KvGroup(1000.0, window=128)))
    assert worker(of).memory(LOAD, role="decode", batch=1).kv_cache == pytest.approx(
        (100 * 4000 + 1000 * 128) / GIB
    )


def test_prefill_keeps_the_prompt_and_its_first_token() -> None:
    held = worker().memory(Load(isl=3000, osl=1000, prefix=1000), role="prefill", batch=2)
    assert held.kv_cache == pytest.approx(2 * 3001 * 2**16 / GIB)


@pytest.mark.parametrize(
    ("backend", "tokens"), [("trtllm", 8192), ("vllm", 6000 + 8), ("sglang", (6000 + 8) * 14 / 11 * 1.15)]
)
def test_an_aggregated_worker_holds_the_tokens_of_a_mixed_step(backend: str, tokens: float) -> None:
    of = graph(attention_width=8192)
    held = worker(of, backend=backend).memory(LOAD, role="agg", batch=10, context_tokens=6000)
    assert held.activations == pytest.approx(2 * tokens * 8192 * 11 / GIB)


def test_drafts_add_rows_to_what_decodes() -> None:
    of, mtp = graph(attention_width=2**17), Mtp(drafted=2)
    plain, drafting = worker(of, backend="vllm"), worker(of, backend="vllm", mtp=mtp)

    def grown(role: Any, **at: Any) -> float:
        return float(
            drafting.memory(LOAD, role=role, **at).activations
            / plain.memory(LOAD, role=role, **at).activations
        )

    assert grown("prefill", batch=1) == pytest.approx(1)
    assert grown("decode", batch=16) == pytest.approx(3)
    assert grown("agg", batch=11, context_tokens=3000) == pytest.approx((3000 + 3 * 10) / 3010)
    guided = worker(of, mtp=mtp, estimator=GUIDE)
    assert float(guided.memory(LOAD, role="prefill", batch=1).activations) == pytest.approx(
        3 * 2 * 3000 * 2**17 * 11 / GIB
    )


def test_what_a_user_reserves_replaces_the_length_of_a_sequence() -> None:
    load = Load(isl=3000, osl=1000, max_seq_len=10_000)
    reserved, needed = (1 * tokens * 2**16 / GIB for tokens in (10_000, 4000))

    def cache(estimator: Any, backend: str) -> float:
        one = worker(estimator=estimator, backend=backend)
        return float(one.memory(load, role="agg", batch=1, context_tokens=3000).kv_cache)

    assert cache(AIC_012, "trtllm") == pytest.approx(reserved)
    assert cache(AIC_012, "vllm") == pytest.approx(needed)
    assert cache(CORRECTED, "vllm") == pytest.approx(reserved)


@pytest.mark.parametrize(
    ("backend", "version", "role", "budget"),
    [
        ("trtllm", "1.0", "agg", (80 - 12 - 70 / 1024) * 0.9 * 0.985 * 0.98),
        ("vllm", "0.24.0", "decode", 80 * 0.92 * 0.98 - 12 - 70 / 1024),
        ("vllm", "0.14.0", "decode", 80 * 0.9 * 0.98 - 12 - 70 / 1024),
        ("sglang", "0.5.14", "decode", 80 * 0.836 * 0.98 - 12.4 - 90 * 1.15 / 1024),
        ("sglang", "0.5.14", "agg", 80 * 0.88 * 0.98 - 12.4 - 90 * 1.15 / 1024),
    ],
)
def test_the_cache_stays_within_what_the_engine_gives_it(
    backend: str, version: str, role: Any, budget: float
) -> None:
    of = graph(attention_width=2)
    one = worker(of, backend=backend, version=version)
    most = int(budget * GIB / 2**16 / 4000)
    batch = np.array([most - 2, most + 2])
    _, fits = one.room(LOAD, Tuning(), role=role, batch=batch, context_tokens=3000)
    assert fits.tolist() == [True, False]


def test_a_user_may_set_the_share_of_memory() -> None:
    one = worker()
    batch = np.arange(1, 400)
    _, own = one.room(LOAD, Tuning(), role="decode", batch=batch)
    _, half = one.room(LOAD, Tuning(free_memory_fraction=0.45), role="decode", batch=batch)
    assert half.sum() == pytest.approx(own.sum() / 2, abs=1)


def test_under_the_guide_s_rules_memory_is_all_that_counts() -> None:
    batch = np.arange(1, 400)
    memory, fits = worker(estimator=GUIDE).room(LOAD, Tuning(), role="decode", batch=batch)
    assert (fits == (memory < 80)).all()
    _, limited = worker(estimator=GUIDE).room(
        LOAD, Tuning(free_memory_fraction=0.5), role="decode", batch=batch
    )
    assert limited.sum() < fits.sum()


# What aiconfigurator 0.12.0 derives from SGLang's rule: GiB, split, share.
@pytest.mark.parametrize(
    ("capacity", "split", "share"),
    [
        (16, Parallel(), 0.772),
        (24, Parallel(), 0.847),
        (24, Parallel(tp=4), 0.827),
        (45, Parallel(tp=4), 0.838),
        (80, Parallel(), 0.836),
        (80, Parallel(tp=4, pp=2, dp=4), 0.706),
        (141, Parallel(tp=8), 0.897),
        (180, Parallel(dp=8), 0.758),
    ],
)
def test_sglang_keeps_memory_back_by_the_size_of_the_gpu(
    capacity: int, split: Parallel, share: float
) -> None:
    assert static_fraction(capacity * GIB, split) == share


@given(st.integers(8, 300), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 8]))
def test_sglang_never_takes_more_than_there_is(capacity: int, tp: int, dp: int) -> None:
    assert 0 < static_fraction(capacity * GIB, Parallel(tp=tp, dp=dp)) < 1


def test_a_shortage_says_what_is_needed_and_what_is_there() -> None:
    small = Reckoned(system(memory_capacity=8 * GIB, name="a30"))
    words = worker(on=small).shortage(LOAD, role="decode")
    assert words == (
        "weights 10.0 + KV cache 0.2 + activations 0.1 + runtime 2.0 = 12.3 GiB of one a30 GPU, which has 8.0 GiB"
    )
