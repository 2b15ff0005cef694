"""An environment whose `vllm` is the simulated engine, but loads its weights as the real one does: they must be there."""

from __future__ import annotations

import subprocess
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
ACTIVATE = """CONDA_PREFIX=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CONDA_PREFIX PATH="$CONDA_PREFIX/bin:$PATH"
"""
# conda-unpack writes the place of the environment into its files
UNPACK = """import os, sys
folder = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
with open(os.path.join(folder, "etc", "prefix"), "w") as prefix:
    prefix.write(folder)
with open({calls!r}, "a") as calls:
    calls.write(os.uname().nodename + "\\n")
"""
PACKED_VLLM = """#!/bin/sh
echo "$0 $(cat "$CONDA_PREFIX/etc/prefix")" >> '{calls}'
shift
exec "$CONDA_PREFIX/bin/python" -P -m aegis sim "$@"
"""


def make_engine(folder: Path) -> Path:
    """Make the environment; its file `calls` has a line for each start."""
    program = folder / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    write_program(program, VLLM.format(calls=folder / "venv" / "calls", python=sys.executable))
    return folder / "venv"


def make_tarball(folder: Path) -> Path:
    """Make what conda-pack makes: a tarball of an environment that is to be made to fit its place.

    In `folder`, the file `unpacked` gets the node's name for each run of conda-unpack, and `started` the place of the
    program and of the environment for each start of the engine. Both can be written by every user.
    """
    tree = folder / "packed"
    (tree / "bin").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "etc" / "prefix").write_text("/opt/a place that was")
    (tree / "bin" / "activate").write_text(ACTIVATE)
    write_program(tree / "bin" / "python3.11", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    (tree / "bin" / "python").symlink_to("python3.11")
    write_program(tree / "bin" / "conda-unpack", UNPACK.format(calls=str(folder / "unpacked")))
    write_program(tree / "bin" / "vllm", PACKED_VLLM.format(calls=folder / "started"))
    for name in ("unpacked", "started"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    tarball = folder / "its env.tar.gz"
    subprocess.run(["tar", "-czf", tarball, "-C", tree, "."], check=True)
    return tarball


def make_entry(folder: Path, size: int = 20_000_000, name: str = "name") -> Path:
    """Make an entry of a Hugging Face cache with weights of so many bytes."""
    entry = folder / "shared disk" / f"models--org--{name}"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "abc").mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    for blob, file, content in (("b1", "config.json", b"{}"), ("b2", "model.safetensors", bytes(size))):
        (entry / "blobs" / blob).write_bytes(content)
        (entry / "snapshots" / "abc" / file).symlink_to(f"../../blobs/{blob}")
    return entry


def write_program(file: Path, text: str) -> None:
    """Write a program that everybody may run."""
    file.write_text(text)
    file.chmod(0o755)
