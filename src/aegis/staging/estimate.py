"""How long staging takes, from measured rates, or from usual ones where nothing was measured.

The blocks flow: they are read, sent, hashed and written at once, each node passing on what it gets. So

    seconds = start + hops * (frame / link + latency) + files * per_file + bytes / min(readers * read, link, write)

`hops` is how many nodes a frame goes through before the last has it: a chain of n nodes has n, R pipelines of n nodes over
disjoint ranges have n each, too, but share the reading. The first term but one is the fill of the pipeline: with frames of
1 MiB, 12.5 GB/s and 50 us, 1,000 nodes take 0.13 s. The last is the slowest stage, and grows with bytes alone, not with nodes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

ENOUGH: Final = 1 << 28  # bytes: what was shorter says more of the start than of the rate


class Rates(Struct, frozen=True, kw_only=True):
    """What each stage does. The defaults are of one Lustre client, a 100 Gbit/s network and a tmpfs, one stream each."""

    read: float = 2.0e9  # bytes/s of one reader
    link: float = 10.0e9  # bytes/s between two nodes, one way
    write: float = 3.0e9  # bytes/s into the node-local file system, hashed
    latency: float = 1e-4  # seconds that a node keeps a frame, besides its length
    frame: int = 1 << 20  # bytes
    per_file: float = 2e-5  # seconds
    start: float = 2.0  # seconds until the programs run on all nodes
    whole: float | None = (
        None  # bytes/s of all stages together, as it was measured: stands for read, link and write
    )


class Estimate(Struct, frozen=True, kw_only=True):
    """Seconds, and what they are made of."""

    start: float
    fill: float
    files: float
    flow: float
    slowest: str  # read, link or write; measured

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.start + self.fill + self.files + self.flow


def estimate(size: int, files: int, nodes: int, rates: Rates, *, readers: int = 1) -> Estimate:
    """Return how long it takes to bring so many bytes to so many nodes.

    Args:
        size: bytes.
        files: how many.
        nodes: that get them.
        rates: of the stages.
        readers: that read disjoint ranges at once.
    """
    stages = {"read": rates.read * max(readers, 1), "link": rates.link, "write": rates.write}
    if rates.whole:
        stages = {"measured": rates.whole}
    slowest = min(stages, key=lambda name: stages[name])
    return Estimate(
        start=rates.start,
        fill=nodes * (rates.frame / rates.link + rates.latency),
        files=files * rates.per_file,
        flow=size / stages[slowest],
        slowest=slowest,
    )


def rates_file(environ: Mapping[str, str]) -> Path:
    """Return where measured rates are kept."""
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or os.path.expanduser('~')}/.cache"
    return Path(cache, "aegis", "staging.json")


def measured(environ: Mapping[str, str], platform: str, stager: str) -> Rates:
    """Return the rates of a platform: what the last staging there came to, or the usual ones."""
    rate = _read(rates_file(environ)).get(f"{platform} {stager}")
    start = 0.0 if stager == "copy" else Rates().start  # of programs on other nodes
    return Rates(whole=rate if rate and rate > 0 else None, start=start)


def note(environ: Mapping[str, str], platform: str, stager: str, size: int, seconds: float) -> None:
    """Keep what a staging came to, for the next estimate; where it cannot be kept, it is not."""
    if size < ENOUGH or seconds <= 0:
        return
    file = rates_file(environ)
    known = _read(file) | {f"{platform} {stager}": size / seconds}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, msgspec.json.encode(known))
    except OSError:
        return


def _read(file: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.DecodeError):
        return {}
