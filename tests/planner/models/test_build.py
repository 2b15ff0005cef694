from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from aegis.errors import AegisError
from aegis.planner.models.build import build_graph
from aegis.planner.models.config import parse_config
from aegis.planner.models.families.step import Lanes
from aegis.planner.models.limits import SplitError
from aegis.planner.models.resolve import find_model
from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    Fallback,
    Gemm,
    GenerationAttention,
)
from aegis.planner.problem import Parallel, Quantization

from .recorded import (
    BLACKWELL,
    HOPPER,
    described,
    expected,
    expected_guide,
    mtp_of,
    quantization_of,
    recordings,
    split_of,
    system,
)

if TYPE_CHECKING:
    from aegis.planner.models.graph import Graph

    from .recorded import Record, Row

FP8 = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="fp8")
BF16 = Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16")
MORE = recordings("oplists_more")


def build(record: Record, sm_version: int) -> Graph:
    return build_graph(
        find_model(record["model"]),
        split_of(record),
        quantization_of(record),
        system=system(sm_version),
        backend=record["backend"],
        mtp=mtp_of(record),
    )


def check(record: Record, graph: Graph, sm_version: int) -> None:
    for phase in ("context", "generation"):
        assert together(described(getattr(graph, phase))) == together(expected(record[phase], sm_version))
    weights = record.get("weights_bytes")
    if weights is not None:
        assert graph.weights * record.get("pp", 1) == pytest.approx(weights, rel=1e-12)
    if record["family"] == "NEMOTRONNAS":
        return
    for tokens, name in ((1, "kv_bytes_per_token"), (4096, "kv_bytes_4096"), (4096, "kv4096")):
        if name in record:
            kept = sum(each.bytes_per_token * min(tokens, each.window or tokens) for each in graph.kv_groups)
            assert kept == record[name]


def together(rows: list[Row]) -> list[Row]:
    """Add up the counts of rows that are alike but for it: blocks of a searched architecture come in any order."""
    ordered = sorted(rows, key=lambda row: repr((row[0], *row[2:])))
    return [
        (key[0], sum(row[1] for row in alike) if isinstance(alike[0][1], float) else alike[0][1], *key[1:])
        for key, found in groupby(ordered, key=lambda row: (row[0], *row[2:]))
        if (alike := list(found))
    ]


@pytest.mark.parametrize("key", sorted(recordings("oplists")))
@pytest.mark.parametrize("sm_version", [HOPPER, BLACKWELL])
def test_operations_weights_and_cache_are_those_recorded(key: str, sm_version: int) -> None:
    record = recordings("oplists")[key]
    check(record, build(record, sm_version), sm_version)


@pytest.mark.parametrize("key", sorted(recordings("oplists_steps")))
def test_operations_of_recorded_steps_are_those_recorded(key: str) -> None:
    record = recordings("oplists_steps")[key]
    sm_version = BLACKWELL if record["system"].startswith("b200") else HOPPER
    check(record, build(record, sm_version), sm_version)


@pytest.mark.parametrize("model", sorted({each["model"] for each in MORE.values()}))
def test_mixed_checkpoints_splits_and_drafts_are_those_recorded(model: str) -> None:
    for record in MORE.values():
        if record["model"] != model or (record["cp"] > 1 and record["family"] == "DEEPSEEKV32"):
            continue
        sm_version = HOPPER if record["system"] else BLACKWELL
        check(record, build(record, sm_version), sm_version)


@pytest.mark.parametrize("model", sorted({each["model"] for each in recordings("oplists_guide").values()}))
@pytest.mark.parametrize("sm_version", [HOPPER, BLACKWELL])
def test_the_guides_operations_are_those_of_its_time(model: str, sm_version: int) -> None:
    for key, record in recordings("oplists_guide").items():
        if record["model"] != model or "error" in record:
            continue
        graph = build_graph(
            find_model(model),
            split_of(record),
            quantization_of(record),
            system=system(sm_version),
            backend="trtllm",
            rules="guide",
            mtp=mtp_of(record),
        )
        for phase in ("context", "generation"):
            ours = [
                row[:-2] if is_context_attention(row) else row for row in described(getattr(graph, phase))
            ]
            theirs = expected_guide(record[phase], sm_version)
            assert [_near(row) for row in ours] == [_near(row) for row in theirs], key
        assert graph.weights * record["pp"] == pytest.approx(record["weights"], rel=1e-12)


def is_context_attention(row: Row) -> bool:
    return (row[0], row[2]) == ("context_attention", "attention")


def _near(row: Row) -> Row:
    return tuple(float(f"{each:.12g}") if isinstance(each, float) else each for each in row)


@pytest.mark.parametrize(
    ("model", "split", "words"),
    [
        ("QWEN3_32B", Parallel(tp=3), "64 attention heads of QWEN3_32B cannot be divided by tp 3"),
        ("QWEN3_32B", Parallel(tp=0), "at least 1"),
        ("QWEN3_235B", Parallel(tp=4), "= 4 GPUs for attention"),
        ("QWEN3_235B", Parallel(tp=3, moe_ep=3), "cannot be divided by tp 3"),
        ("QWEN3_480B", Parallel(tp=1, dp=64, moe_ep=64), "160 experts"),
        ("QWEN3_235B", Parallel(tp=8, moe_tp=8), "no multiple of the 128"),
        ("QWEN3_32B", Parallel(cp=2), "not known for trtllm"),
        ("Qwen/Qwen3.5-27B", Parallel(tp=24), "16 key and 48 value heads"),
    ],
)
def test_a_split_that_a_model_does_not_allow_says_why(model: str, split: Parallel, words: str) -> None:
    with pytest.raises(SplitError, match=words):
        build_graph(find_model(model), split, FP8, system=system(HOPPER), backend="trtllm")


def test_the_guide_leaves_at_least_four_heads_on_a_gpu() -> None:
    model = find_model("QWEN3_0.6B")
    with pytest.raises(SplitError, match="leaves 2 of 16 heads"):
        build_graph(model, Parallel(tp=8), FP8, system=system(HOPPER), backend="trtllm", rules="guide")
    build_graph(model, Parallel(tp=8), FP8, system=system(HOPPER), backend="trtllm")


def test_the_guide_drafts_tokens_with_deepseek_only() -> None:
    with pytest.raises(AegisError, match="DeepSeek-V3 only"):
        build_graph(
            find_model("QWEN3_32B"),
            Parallel(),
            FP8,
            system=system(HOPPER),
            backend="trtllm",
            rules="guide",
            mtp=mtp_of({"nextn": 1}),
        )


def test_a_correction_puts_the_logits_into_the_prefill_of_experts() -> None:
    model, split = find_model("Qwen/Qwen3-30B-A3B"), Parallel(tp=2, moe_ep=2)
    plain, corrected = (
        build_graph(model, split, BF16, system=system(HOPPER), backend="trtllm", corrections=corrections)
        for corrections in (frozenset[str](), frozenset({"logits-in-prefill"}))
    )
    assert not any(each.name == "context_logits_gemm" for each in plain.context)
    (logits,) = (each for each in corrected.context if each.name == "context_logits_gemm")
    assert isinstance(logits, Gemm)
    assert logits.sampled
    assert corrected.weights - plain.weights == 2 * model.hidden * model.vocab // 2


def test_attention_takes_the_lanes_that_are_given() -> None:
    lanes = Lanes(context=("fa3", "default"), generation=("triton", "default"))
    graph = build_graph(
        find_model("QWEN3_8B"), Parallel(), BF16, system=system(HOPPER), backend="sglang", lanes=lanes
    )
    (context,) = (each for each in graph.context if isinstance(each, ContextAttention))
    (generation,) = (each for each in graph.generation if isinstance(each, GenerationAttention))
    assert (context.lanes, generation.lanes) == lanes


def test_a_wide_node_reduces_by_nccl_beyond_four_gpus() -> None:
    model = find_model("QWEN3_235B")
    for gpus, kind in ((4, AllReduce), (8, Collective)):
        graph = build_graph(
            model,
            Parallel(tp=gpus, moe_ep=gpus),
            BF16,
            system=system(BLACKWELL, gpus_per_node=72),
            backend="trtllm",
            rules="guide",
        )
        sent = [each for each in graph.context if "dispatch" in each.name]
        assert {type(each) for each in sent} == {kind}


def test_a_model_with_windows_in_all_layers_keeps_no_more_than_them() -> None:
    config = {
        "architectures": ["MistralForCausalLM"],
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    shape = parse_config(config, where="config.json", name="mistral")
    graph = build_graph(shape, Parallel(tp=2), BF16, system=system(HOPPER), backend="vllm")
    assert [each.window for each in graph.kv_groups] == [4096]
    assert [each.window for each in graph.context if isinstance(each, ContextAttention)] == [4096]


def test_latent_attention_without_compressed_queries_projects_them_at_once() -> None:
    config = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "intermediate_size": 10944,
        "vocab_size": 102400,
        "max_position_embeddings": 163840,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    shape = parse_config(config, where="config.json", name="lite")
    graph = build_graph(shape, Parallel(), BF16, system=system(HOPPER), backend="trtllm")
    (block,) = (each for each in graph.context if isinstance(each, Fallback))
    gemms = {
        each.name: (each.n, each.k) for each in (*block.otherwise, *graph.context) if isinstance(each, Gemm)
    }
    assert gemms["context_downscale_gemm"] == (576, 2048)
    assert gemms["context_q_b_proj_gemm"] == (16 * 192, 2048)
    assert gemms["context_shared_gate_up_gemm"] == (2 * 2816, 2048)
    # 15.7 billion parameters; all 27 layers count as expert layers, though the first one is dense
    assert graph.weights / 2e9 == pytest.approx(16.2, abs=0.3)
