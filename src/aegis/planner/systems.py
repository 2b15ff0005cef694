"""The hardware: one GPU, its node and its links. Data: data/planner/systems/*.yaml, and a site's own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.spec.document import read_document
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Era: TypeAlias = Literal["current", "guide"]

DATA = Path(__file__).parent.parent / "data" / "planner"
BUILT_IN = DATA / "systems"


class System(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU of a machine, as a plan sees it. Bandwidths in bytes/s (links: per GPU, one direction), FLOPS dense."""

    name: str
    title: str = ""  # "NVIDIA H200 SXM 141 GB"
    memory_bandwidth: float
    memory_capacity: int  # bytes
    flops: dict[str, float]  # by tensor format: bfloat16, int8, fp8, fp4
    sm_version: int = 0  # compute capability times ten, e.g. 90; 0: not NVIDIA
    power: float = 0.0  # W
    gpus_per_node: int
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    gpus_per_rack: int | None = None  # one NVLink domain over several nodes
    inter_rack_bandwidth: float | None = None
    p2p_latency: float = 1e-5  # s
    memory_efficiency: float = 0.8  # of memory-bound operations
    memory_latency: float = 3e-6  # s, of each
    nccl_memory: dict[int, int]  # bytes by number of GPUs (1, 2, 4, 8)
    other_memory: int  # bytes that the runtime takes
    nccl_version: str = ""
    estimated: bool = False  # no tables: figures come from a formula
    uncertainty: float = 0.0  # relative, of an estimated system's step times (90 % band)
    source: str = ""  # where the facts come from

    def bandwidth(self, gpus: int) -> float:
        """Return the link bandwidth of a group of so many GPUs, in bytes/s."""
        if gpus <= self.gpus_per_node:
            return self.intra_node_bandwidth
        if self.gpus_per_rack is None or gpus <= self.gpus_per_rack:
            return self.inter_node_bandwidth
        return self.inter_node_bandwidth if self.inter_rack_bandwidth is None else self.inter_rack_bandwidth


def own_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return where a user keeps measured tables and descriptions of systems: $AEGIS_TABLES, or ~/.config/aegis/tables."""
    environ = os.environ if environ is None else environ
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
    return Path(environ.get("AEGIS_TABLES") or home / "aegis" / "tables")


def system_names(*, era: Era = "current") -> list[str]:
    """Return the names of all systems that are described, sorted; a user's own are among them."""
    return sorted(_files(era))


def load_system(name: str, *, era: Era = "current") -> System:
    """Return a system by name; a user's description hides a shipped one of the same name.

    Raises:
        ConfigError: unknown name, or a description that is wrong.
    """
    files = _files(era)
    if name not in files:
        raise ConfigError(f"unknown system `{name}`", hint=_meant(name, files))
    document = read_document(files[name])
    values: dict[str, Any] = document.value if isinstance(document.value, dict) else {}
    try:
        return msgspec.convert({**values, "name": name}, System, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{files[name]}: {error}", hint="a shipped system shows the keys") from None


def _meant(name: str, known: Iterable[str]) -> str:
    """Return which system may have been meant: those whose name only goes on (`h100`), or the nearest."""
    names = sorted(known)
    longer = [f"`{each}`" for each in names if name and each.startswith(name.lower())]
    if longer:
        return f"did you mean {' or '.join(longer)}?"
    return did_you_mean(name, names) or f"one of {', '.join(names)}"


def _files(era: Era) -> dict[str, Path]:
    folders = (BUILT_IN / "guide",) if era == "guide" else (BUILT_IN, own_folder())
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
