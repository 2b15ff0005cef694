"""What the engines are told: TensorRT-LLM's files by version, and the command lines of vLLM and SGLang."""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.engines import engine
from aegis.engines.base import PORT
from aegis.errors import ConfigError
from aegis.planner.emit.deployment import deployment_of
from aegis.planner.emit.flags import arguments, sglang_flags, unmet, vllm_flags
from aegis.planner.emit.servers import servers_of
from aegis.planner.emit.text import to_yaml
from aegis.planner.emit.trtllm import engine_config, graph_sizes
from aegis.planner.problem import Load, Mtp, Parallel, Tuning
from tests.engines.test_vllm import PARSE, ask_vllm, starts

from .conftest import FP8, HOSTILE, candidate, experiment, pair, servers, workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.emit.servers import Server

SGLANG = Path(__file__).parents[2] / "fixtures" / "sglang" / "flags-0.5.23.json"
EXPERTS = candidate(workers(parallel=Parallel(tp=2, dp=4, moe_tp=1, moe_ep=8), quantization=FP8))


def of_experts(backend: str) -> tuple[Server, ...]:
    chosen = replace(EXPERTS, workers=(replace(EXPERTS.workers[0], backend=backend),))
    asked = experiment("deepseek-ai/DeepSeek-V3", chosen, backend=backend, mtp=Mtp(drafted=1))
    return servers_of(asked, chosen, model="deepseek-ai/DeepSeek-V3", gpus_per_node=8)


def every_server(backend: str) -> Iterator[Server]:
    """Servers that differ in all that flags depend on."""
    yield from servers(backend=backend)
    yield from servers(pair(backend), backend=backend)
    yield from of_experts(backend)
    yield from servers(candidate(workers(backend=backend, quantization=FP8)), backend=backend, model=HOSTILE)
    pipeline = candidate(workers(backend=backend, parallel=Parallel(tp=2, pp=2)))
    load = Load(isl=3000, osl=512, prefix=1000)
    yield from servers(pipeline, backend=backend, load=load, tuning=Tuning(free_memory_fraction=0.8))


def test_limits_are_those_of_the_plan() -> None:
    (server,) = servers()
    assert vllm_flags(server) == {
        "tensor-parallel-size": 4,
        "pipeline-parallel-size": 1,
        "max-model-len": 4032,  # 3000 + 512, and what a chat template adds, in blocks of 32
        "max-num-seqs": 48,
        "max-num-batched-tokens": 3072,  # 3000 of prompts and a token of each of 48, in blocks of 32
    }
    assert sglang_flags(servers(backend="sglang")[0]) == {
        "tensor-parallel-size": 4,
        "pipeline-parallel-size": 1,
        "context-length": 4032,
        "max-running-requests": 48,
        "chunked-prefill-size": 3000,
        "max-prefill-tokens": 4032,
        "enable-mixed-chunk": True,
    }


def test_a_sequence_is_never_longer_than_the_model_goes() -> None:
    context = 40_960  # of Qwen3-32B
    (server,) = servers(load=Load(isl=40_000, osl=900))
    assert server.max_length == context
    assert servers(load=Load(isl=3000, osl=512, max_seq_len=9000))[0].max_length == 9000


def test_every_stage_of_a_pipeline_has_a_batch_of_its_own() -> None:
    (server,) = servers(candidate(workers(parallel=Parallel(tp=2, pp=2), batch=10)))
    assert vllm_flags(server)["max-num-seqs"] == 20


def test_prefill_and_decode_workers_have_the_limits_of_their_steps() -> None:
    prefill, decode = map(vllm_flags, servers(pair()))
    assert (prefill["max-num-seqs"], prefill["max-num-batched-tokens"]) == (1, 3520)
    assert (decode["max-num-seqs"], decode["max-num-batched-tokens"]) == (64, 64)
    assert json.loads(str(decode["kv-transfer-config"]))["kv_connector"] == "NixlConnector"
    first, second = map(sglang_flags, servers(pair("sglang"), backend="sglang"))
    assert (first["disaggregation-mode"], second["disaggregation-mode"]) == ("prefill", "decode")


def test_experts_are_split_as_each_engine_counts_its_gpus() -> None:
    (server,) = of_experts("vllm")
    flags = vllm_flags(server)
    assert (flags["tensor-parallel-size"], flags["data-parallel-size"]) == (2, 4)
    assert flags["enable-expert-parallel"] is True
    assert json.loads(str(flags["speculative-config"])) == {"method": "mtp", "num_speculative_tokens": 1}
    flags = sglang_flags(of_experts("sglang")[0])
    assert (flags["tensor-parallel-size"], flags["data-parallel-size"], flags["expert-parallel-size"]) == (
        8,
        4,
        8,
    )
    assert (flags["enable-dp-attention"], flags["max-running-requests"]) == (True, 48 * 4)
    config = engine_config(of_experts("trtllm")[0])
    assert (config["tensor_parallel_size"], config["enable_attention_dp"]) == (8, True)
    assert (config["moe_tensor_parallel_size"], config["moe_expert_parallel_size"]) == (1, 8)
    assert config["speculative_config"] == {"decoding_type": "MTP", "num_nextn_predict_layers": 1}


def test_formats_that_the_checkpoint_lacks_are_made_or_told() -> None:
    (server,) = servers(candidate(workers(quantization=FP8)))
    assert server.requantize == "fp8_block"
    assert (vllm_flags(server)["quantization"], vllm_flags(server)["kv-cache-dtype"]) == (
        "fp8_per_block",
        "fp8",
    )
    assert unmet(server, "vllm") == []
    assert "quantization" not in sglang_flags(server)
    assert "fp8_block weights" in unmet(server, "sglang")[0]
    int8 = replace(server, requantize=None, kv_cache="int8")
    assert "no int8 KV cache" in unmet(int8, "vllm")[0]
    assert "stays so" in unmet(replace(server, requantize="bfloat16"), "vllm")[0]


@pytest.mark.parametrize(
    ("version", "limits_in", "keys"),
    [
        ("0.20.0", None, set()),
        ("1.0.0rc3", "build_config", {"kv_cache_dtype", "cuda_graph_config"}),
        ("1.0.0rc6", "build_config", {"cache_transceiver_config", "cuda_graph_config"}),
        ("1.1.0rc5", "build_config", {"cache_transceiver_config", "cuda_graph_config"}),
        ("1.2.0rc5", None, {"cache_transceiver_config", "cuda_graph_config"}),
        ("1.3.0rc23", None, {"cache_transceiver_config", "cuda_graph_config"}),
    ],
)
def test_the_file_of_tensorrt_llm_has_the_keys_of_its_version(
    version: str, limits_in: str | None, keys: set[str]
) -> None:
    decode = servers(pair("trtllm"), backend="trtllm")[1]
    config = engine_config(decode, version)
    limits = config if limits_in is None else config[limits_in]
    assert (limits["max_batch_size"], limits["max_num_tokens"], limits["max_seq_len"]) == (64, 64, 4032)
    assert {"kv_cache_dtype", "cache_transceiver_config", "cuda_graph_config"} & set(config) == keys
    assert ("dtype" in config["kv_cache_config"]) == ("cache_transceiver_config" in keys)
    if "cache_transceiver_config" in keys:
        upper = version != "1.0.0rc6"
        assert config["cache_transceiver_config"]["backend"] == ("DEFAULT" if upper else "default")


def test_whole_prompts_fit_with_their_chat_template() -> None:
    config = engine_config(servers(backend="trtllm")[0])
    assert config["max_num_tokens"] >= 3000 + 48 + 500
    assert config["max_num_tokens"] % config["kv_cache_config"]["tokens_per_block"] == 0
    assert config["kv_cache_config"]["enable_block_reuse"] is False
    cached = servers(backend="trtllm", load=Load(isl=3000, osl=512, prefix=100))[0]
    assert engine_config(cached)["kv_cache_config"]["enable_block_reuse"] is True


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no version"):
        engine_config(servers(backend="trtllm")[0], "newest")


@given(st.integers(1, 2000))
def test_graphs_cover_every_batch(largest: int) -> None:
    sizes = graph_sizes(largest)
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert list(sizes) == sorted(set(sizes))
    assert all(later - sooner <= max(64, sooner) for sooner, later in pairwise(sizes))


def recorded_parser() -> argparse.ArgumentParser:
    """SGLang's parser, rebuilt from its recorded options."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for names, nargs, choices in json.loads(SGLANG.read_text()):
        switch: dict[str, Any] = (
            {"action": "store_true"} if nargs == 0 else {"nargs": nargs, "choices": choices}
        )
        parser.add_argument(*names, **switch)
    return parser


def test_sglang_knows_every_option() -> None:
    parser = recorded_parser()
    for server in every_server("sglang"):
        words = ["--model-path", server.model, *arguments(sglang_flags(server))]
        found, unknown = parser.parse_known_args(words)
        assert unknown == []
        assert found.model_path == server.model


@pytest.mark.vllm
def test_vllms_own_parser_takes_every_command_line(vllm_venv: Path, tmp_path: Path) -> None:
    lines: list[list[str]] = []
    config = tmp_path / "agg_config.yaml"
    for server in every_server("vllm"):
        lines.append(["serve", server.model, *arguments(vllm_flags(server))])
        for entry in deployment_of((server,), 2, None).deployment.models:
            for start in starts(entry):
                command = engine("vllm").command(start)
                lines.append([word.replace(PORT, "8000") for word in command[1:]])
    (server,) = of_experts("vllm")
    config.write_text(to_yaml(vllm_flags(server)))
    lines.append(["serve", server.model, "--config", str(config)])
    parsed = ask_vllm(vllm_venv, PARSE, "PARSED", lines, tmp_path)
    assert [found["model_tag"] for found in parsed] == [line[1] for line in lines]
    assert parsed[-1]["data_parallel_size"] == 4
