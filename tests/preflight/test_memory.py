"""Weights and the cache of one request against the memory of the devices, with real headers over holes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .conftest import LLAMA_8B, LLAMA_70B, write_model, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Desk

MOE = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8}
SHORT = ("--max-model-len", "2048")


def told(
    desk: Desk,
    site: str,
    config: dict[str, Any],
    *args: str,
    gib: float = 131.4,
    kind: str = "BF16",
    engine: str = "vllm",
    **keys: Any,
) -> list[str]:
    folder = write_model(desk.folder / "m", config, gib, kind, shards=4)
    keys = {
        "served_model_name": "M",
        "engine": engine,
        **({f"extra_{engine}_args": args} if args else {}),
        **keys,
    }
    return desk.told(model=str(folder), platform=site, **keys)


def test_weights_larger_than_a_device(desk: Desk, gpus: Callable[..., str]) -> None:
    assert told(desk, gpus(64), LLAMA_70B, *SHORT) == [
        (
            "--model: the 131.4 GiB of weights of M do not fit: a GPU of 64.0 GiB gives 58.9 GiB "
            "(--gpu-memory-utilization 0.92) (a tensor_parallel_size of 4 holds them)"
        )
    ]


def test_weights_larger_than_the_devices_together(desk: Desk, gpus: Callable[..., str]) -> None:
    assert told(desk, gpus(64), LLAMA_70B, *SHORT, tensor_parallel_size=2) == [
        (
            "--tensor-parallel-size: the 131.4 GiB of weights of M over 2 devices are 65.7 GiB each, and a GPU of "
            "64.0 GiB gives 58.9 GiB (--gpu-memory-utilization 0.92) (a tensor_parallel_size of 4 holds them)"
        )
    ]
    assert told(desk, gpus(64), LLAMA_70B, *SHORT, tensor_parallel_size=4) == []
    assert told(desk, gpus(64), LLAMA_70B, *SHORT, pipeline_parallel_size=3) == []


def test_the_share_of_the_device_is_the_engine_s(desk: Desk, gpus: Callable[..., str]) -> None:
    keys: dict[str, Any] = {"tensor_parallel_size": 4}
    (said,) = told(desk, gpus(64), LLAMA_70B, *SHORT, "--gpu-memory-utilization", "0.5", **keys)
    assert "a GPU of 64.0 GiB gives 32.0 GiB (--gpu-memory-utilization 0.5)" in said
    for nonsense in ("nan", "-1", "much", "1e400", ""):
        assert told(desk, gpus(64), LLAMA_70B, *SHORT, f"--gpu-memory-utilization={nonsense}", **keys) == []
    site = gpus(64, engine_args={"vllm": ["--gpu-memory-utilization", "0.5"]})
    assert told(desk, site, LLAMA_70B, *SHORT, **keys) != []
    assert told(desk, site, LLAMA_70B, *SHORT, "--gpu-memory-utilization", "0.9", **keys) == []


def test_sglang_has_its_own_share(desk: Desk, gpus: Callable[..., str]) -> None:
    (said,) = told(desk, gpus(64), LLAMA_70B, engine="sglang")
    assert "gives 57.6 GiB (--mem-fraction-static 0.9)" in said
    args = ("--mem-fraction-static", "0.5")
    (said,) = told(desk, gpus(64), LLAMA_70B, *args, engine="sglang", tensor_parallel_size=4)
    assert "32.9 GiB each, and a GPU of 64.0 GiB gives 32.0 GiB (--mem-fraction-static 0.5)" in said


def test_float32_is_loaded_as_16_bit_unless_it_is_asked_for(desk: Desk, gpus: Callable[..., str]) -> None:
    keys: dict[str, Any] = {"gib": 100.0, "kind": "F32"}
    assert told(desk, gpus(64), LLAMA_8B, *SHORT, **keys) == []
    (said,) = told(desk, gpus(64), LLAMA_8B, *SHORT, "--dtype", "float32", **keys)
    assert "the 100.0 GiB of weights of M do not fit" in said
    (said,) = told(desk, gpus(40), LLAMA_8B, *SHORT, **keys)
    assert "the 50.0 GiB of weights of M do not fit" in said


def test_what_is_quantized_stays_as_it_is(desk: Desk, gpus: Callable[..., str]) -> None:
    config = {**LLAMA_70B, "quantization_config": {"quant_method": "fp8"}}
    assert told(desk, gpus(64), config, *SHORT, gib=50.0, kind="F8_E4M3") == []
    (said,) = told(desk, gpus(40), config, *SHORT, gib=50.0, kind="F8_E4M3")
    assert "the 50.0 GiB of weights" in said


@pytest.mark.parametrize(
    "args",
    [
        ("--quantization", "fp8"),
        ("-q", "fp8"),
        ("--cpu-offload-gb", "80"),
        ("--load-format", "bitsandbytes"),
        ("--hf-overrides", '{"num_hidden_layers": 2}'),
    ],
)
def test_flags_that_make_the_files_no_measure_are_believed(
    desk: Desk, gpus: Callable[..., str], args: tuple[str, ...]
) -> None:
    assert told(desk, gpus(64), LLAMA_70B, *args) == []


@pytest.mark.parametrize(
    "keys", [{"resource_type": "h100"}, {"constraint": "hbm80g"}, {"directives": ["-C gpu&hbm80g"]}]
)
def test_other_devices_than_the_usual_ones_are_not_known(
    desk: Desk, gpus: Callable[..., str], keys: dict[str, Any]
) -> None:
    assert told(desk, gpus(40), LLAMA_70B, *SHORT, **keys) == []


def test_a_site_that_does_not_tell_its_memory(desk: Desk, gpus: Callable[..., str]) -> None:
    assert told(desk, gpus(None), LLAMA_70B, gib=5000) == []


def test_replicas_hold_all_weights_but_experts_are_split_over_them(
    desk: Desk, gpus: Callable[..., str]
) -> None:
    keys: dict[str, Any] = {"tensor_parallel_size": 2, "data_parallel_size": 4}
    assert len(told(desk, gpus(64), LLAMA_70B, *SHORT, **keys)) == 1
    assert told(desk, gpus(64), MOE, *SHORT, **keys) == []


def test_when_no_size_of_tensor_parallelism_is_enough(desk: Desk, gpus: Callable[..., str]) -> None:
    config = {**LLAMA_70B, "num_attention_heads": 2, "num_key_value_heads": 2}
    (said,) = told(desk, gpus(64), config, *SHORT, gib=400.0, tensor_parallel_size=2)
    assert said.endswith("(tensor_parallel_size x pipeline_parallel_size has to be at least 8)")


def test_one_request_of_full_length_needs_its_cache(desk: Desk, gpus: Callable[..., str]) -> None:
    # 2 x 8 heads x 128 values x 32 layers x 2 bytes = 128 KiB a token, 16 GiB for 131072
    assert told(desk, gpus(24), LLAMA_8B, gib=15.0) == [
        (
            "--model: one request of M (the 131072 tokens of its full context) needs 16.0 GiB of KV cache on each device, "
            "and 15.0 GiB of weights leave 7.1 GiB of 22.1 GiB (--gpu-memory-utilization 0.92) (--max-model-len 57344 or "
            "a tensor_parallel_size of 2 would fit)"
        )
    ]
    assert told(desk, gpus(24), LLAMA_8B, "--max-model-len", "57344", gib=15.0) == []
    assert told(desk, gpus(24), LLAMA_8B, gib=15.0, tensor_parallel_size=2) == []
    assert told(desk, gpus(24), LLAMA_8B, gib=15.0, pipeline_parallel_size=2) == []
    assert told(desk, gpus(40), LLAMA_8B, gib=15.0) == []
    (said,) = told(desk, gpus(24), LLAMA_8B, "--max-model-len", "64K", gib=15.0)
    assert "(--max-model-len 65536) needs 8.0 GiB of KV cache" in said


def test_each_device_holds_one_kv_head_at_least(desk: Desk, gpus: Callable[..., str]) -> None:
    config = {**LLAMA_8B, "num_key_value_heads": 1, "max_position_embeddings": 2**20}
    (said,) = told(desk, gpus(14), config, gib=1.0, tensor_parallel_size=4)
    assert "needs 16.0 GiB of KV cache on each device" in said


def test_a_latent_cache_is_on_every_device(desk: Desk, gpus: Callable[..., str]) -> None:
    config = {
        "model_type": "deepseek_v3",
        "num_attention_heads": 128,
        "num_hidden_layers": 61,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "max_position_embeddings": 163840,
        "n_routed_experts": 256,
    }
    (said,) = told(desk, gpus(14), config, gib=40.0, tensor_parallel_size=8)
    assert "needs 10.7 GiB of KV cache on each device, and 5.0 GiB of weights leave 7.9 GiB" in said


@pytest.mark.parametrize(
    ("args", "fits"),
    [
        (("--kv-cache-dtype", "fp8"), True),
        (("--kv-cache-dtype=fp8_e4m3",), True),
        (("--kv-cache-dtype", "bfloat16"), False),
        (("--kv-cache-dtype", "nvfp4"), True),
        (("--kv-cache-memory-bytes", "16G"), True),
        (("--kv-cache-memory-bytes", "15G"), False),
        (("--decode-context-parallel-size", "2"), True),
        (("--runner", "pooling"), True),
        (("--max-model-len", "auto"), True),
    ],
)
def test_flags_of_the_cache(desk: Desk, gpus: Callable[..., str], args: tuple[str, ...], fits: bool) -> None:
    assert (told(desk, gpus(32), LLAMA_8B, *args, gib=15.0) == []) == fits


def test_a_cache_of_a_given_size(desk: Desk, gpus: Callable[..., str]) -> None:
    (said,) = told(desk, gpus(64), LLAMA_8B, "--kv-cache-memory-bytes", "1G", gib=15.0)
    assert said.endswith(
        "needs 16.0 GiB of KV cache on each device, and --kv-cache-memory-bytes gives 1.0 GiB "
        "(--max-model-len 8192 would fit)"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "gemma3_text"},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"num_hidden_layers": None},
        {"max_position_embeddings": None},
    ],
)
def test_a_cache_that_is_not_the_same_in_every_layer_is_not_counted(
    desk: Desk, gpus: Callable[..., str], more: dict[str, Any]
) -> None:
    assert told(desk, gpus(24), {**LLAMA_8B, **more}, gib=15.0) == []


def test_a_scaling_of_positions_makes_no_context_longer_than_it_is(
    desk: Desk, gpus: Callable[..., str]
) -> None:
    config = {
        **LLAMA_8B,
        "max_position_embeddings": 32768,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    }
    assert told(desk, gpus(24), config, gib=15.0) == []


def test_without_a_readable_header_the_configuration_tells_the_type(
    desk: Desk, gpus: Callable[..., str]
) -> None:
    folder = write_model(desk.folder / "m", {**LLAMA_8B, "torch_dtype": "float32"})
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(50 * 1024**3)
    found = desk.told(model=str(folder), platform=gpus(24), extra_vllm_args=SHORT)
    assert "the 25.0 GiB of weights" in found[0]


def test_a_header_longer_than_what_is_read_is_no_trouble(desk: Desk, gpus: Callable[..., str]) -> None:
    folder = write_model(desk.folder / "m", LLAMA_8B)
    write_safetensors(folder / "model.safetensors", {f"layer.{n}": ("BF16", 10**6) for n in range(20_000)})
    (said,) = desk.told(model=str(folder), platform=gpus(24), extra_vllm_args=SHORT)
    assert "the 37.3 GiB of weights" in said


def test_the_simulated_engine_needs_no_memory(desk: Desk, gpus: Callable[..., str]) -> None:
    assert told(desk, gpus(1), LLAMA_70B, engine="sim") == []
