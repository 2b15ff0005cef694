"""An environment whose `vllm` is the simulated engine, but loads its weights as the real one does: they must be there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VLLM = """#!/bin/sh
# vllm serve WEIGHTS ...
[ -e "$2/config.json" ] || {{ echo "no config.json in $2" >&2; exit 1; }}
echo "$2" >> '{calls}'
shift
exec '{python}' -P -m aegis sim "$@"
"""


def make_engine(folder: Path) -> Path:
    """Make the environment; its file `calls` has a line for each start."""
    program = folder / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(VLLM.format(calls=folder / "venv" / "calls", python=sys.executable))
    program.chmod(0o755)
    return folder / "venv"


def make_entry(folder: Path, size: int = 20_000_000) -> Path:
    """Make an entry of a Hugging Face cache with weights of so many bytes."""
    entry = folder / "shared disk" / "models--org--name"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "abc").mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    for blob, name, content in (("b1", "config.json", b"{}"), ("b2", "model.safetensors", bytes(size))):
        (entry / "blobs" / blob).write_bytes(content)
        (entry / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{blob}")
    return entry
