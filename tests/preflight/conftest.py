"""Deployments, sites and checkpoints for the checks before the queue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from aegis.preflight.files import LocalFiles
from aegis.preflight.report import findings
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import Resolved, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aegis.preflight.files import Files
    from aegis.preflight.finding import Finding

GIB = 1024**3
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4}
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
LLAMA_8B = {
    **LLAMA_70B,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
}


def write_safetensors(file: Path, tensors: Mapping[str, tuple[str, int]]) -> None:
    """Write a file of weights: name -> (data type, number of values). The data is a hole: nothing is on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, count) in tensors.items():
        size = count * WIDTHS[kind]
        header[name] = {"dtype": kind, "shape": [count], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def write_model(
    folder: Path, config: Mapping[str, Any], gib: float = 0.001, kind: str = "BF16", shards: int = 1
) -> Path:
    """Write a model whose weights take so many GiB in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    count = int(gib * GIB / WIDTHS[kind] / shards)
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        write_safetensors(folder / name, {f"layer.{number}": (kind, count)})
    return folder


def site(*folders: Path) -> Site:
    return Site((BUILT_IN, *folders), "laptop", lambda _: False)


class Desk:
    """A user who is about to submit, in a directory of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profiles = folder / "profiles"
        self.profiles.mkdir()
        self.environ: dict[str, str] = {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}
        self.files: Files = LocalFiles()

    def resolve(self, text: str = "", **flags: Any) -> Resolved:
        """Resolve a deployment file with flags; no home of a hub and no log root but those of the test."""
        flags = {"hf_home": str(self.folder / "hf"), "log_dir": str(self.folder / "logs"), **flags}
        config = self.folder / "d.yaml"
        if text:
            config.write_text(text)
        environ = {name: value for name, value in self.environ.items() if name == "HF_TOKEN"}
        return resolve(config if text else None, flags, environ, site(self.profiles))

    def findings(self, text: str = "", nodes: int = 1, **flags: Any) -> list[Finding]:
        return findings(self.resolve(text, **flags), nodes, self.files, self.environ)

    def told(self, text: str = "", nodes: int = 1, **flags: Any) -> list[str]:
        """Return what is found, `!` for what is certain, paths of the test as `~`."""
        found = self.findings(text, nodes, **flags)
        return [f"{'!' * each.certain}{each.problem}".replace(str(self.folder), "~") for each in found]

    def profile(self, name: str, text: str) -> str:
        (self.profiles / f"{name}.yaml").write_text(text)
        return name


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Desk(tmp_path)


@pytest.fixture
def gpus(desk: Desk) -> Callable[..., str]:
    """Return the name of a site with nodes of 8 devices of so many GiB."""

    def make(gib: float | None = 64, **keys: Any) -> str:
        memory = "" if gib is None else f"  device_memory_gib: {gib}\n"
        more = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        text = f"scheduler: slurm\nlauncher: srun\nnode:\n  devices: 8\n{memory}{more}"
        return desk.profile("gpus", text)

    return make
