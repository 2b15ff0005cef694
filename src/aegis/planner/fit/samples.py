"""Rows of measured tables as work and latency: what efficiency curves are fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.models.formats import FORMATS
from aegis.planner.operations import NoData
from aegis.planner.perf import work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.planner.operations import Floats
    from aegis.planner.perf.work import Work
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Key, Slice, Tables


# The least sizes that matter: smaller ones are in no model, or take no time.
_PRODUCT, _PROMPT, _CACHED, _MESSAGE = 256, 16, 64, 1024
_GROUP = 8  # GPUs of an all-reduce that is measured within a node


class Sample(NamedTuple):
    """Measured rows of one operation in one format on one system."""

    system: System
    backend: str
    operation: str
    format: str
    work: Work  # features (rows,) each
    latency: Floats  # (rows,), ms

    @property
    def key(self) -> tuple[str, str, str]:
        """What one curve answers for."""
        return self.operation, self.format, self.backend


def samples(system: System, tables: Tables, rows: int = 500, seed: int = 0) -> list[Sample]:
    """Return at most so many rows of each operation and format, drawn alike every time."""
    draw = _Draw(system, tables, rows, np.random.default_rng(seed))
    return [
        Sample(system, tables.backend, operation, number_format, done, latency)
        for operation in _READERS
        for number_format, keys in _by_format(operation, tables)
        for done, latency in draw.rows_of(operation, number_format, keys)
    ]


def _by_format(operation: str, tables: Tables) -> Iterator[tuple[str, list[Key]]]:
    found: dict[str, list[Key]] = {}
    for key in tables.keys(operation):
        number_format = _format(operation, key)
        if number_format is not None:
            found.setdefault(number_format, []).append(key)
    yield from sorted(found.items())


def _format(operation: str, key: Key) -> str | None:
    """The format of a slice, or None where a plan does not use it."""
    found: str | None = None
    match operation, key:
        case ("context_attention", ("default", fmha, kv_cache, *_)) | ("context_mla", (fmha, kv_cache)):
            found = f"{fmha}/{kv_cache}"
        case ("generation_attention", ("default", kv_cache, *_)):
            found = str(kv_cache)
        case ("moe", ("default", quant, _)):
            found = str(quant)
        case ("custom_allreduce", ()):
            found = "half"
        case ("gemm" | "mla_bmm" | "generation_mla" | "nccl", (first, *_)):
            found = str(first)
    return found


class _Draw(NamedTuple):
    system: System
    tables: Tables
    rows: int
    rng: np.random.Generator

    def rows_of(self, operation: str, number_format: str, keys: list[Key]) -> Iterator[tuple[Work, Floats]]:
        """Yield rows of an operation in one format, alike from all its slices; nothing if there are none."""
        parts = [
            part
            for key in keys
            for part in self._slice(operation, number_format, key, share=-(-2 * self.rows // len(keys)))
        ]
        latency = np.concatenate([each for _, each in parts]) if parts else np.empty(0)
        if len(latency):
            chosen = np.sort(self.rng.choice(len(latency), min(self.rows, len(latency)), replace=False))
            yield _rows(_joined([done for done, _ in parts]), chosen, len(latency)), latency[chosen]

    def _slice(
        self, operation: str, number_format: str, key: Key, *, share: int
    ) -> Iterator[tuple[Work, Floats]]:
        part = self.tables.load(operation, key)
        if part is None or not _known(number_format):
            return
        try:
            done, useful = _READERS[operation](self.system, number_format, key, part)
        except (
            NoData
        ):  # it does not compute in this format, yet has rows: they cannot say anything of its limits
            return
        which = np.flatnonzero(useful & (part.latency > 0))
        if len(which) > share:
            which = np.sort(self.rng.choice(which, share, replace=False))
        yield _rows(done, which, len(part.latency)), part.latency[which]


def _known(number_format: str) -> bool:
    return all(part in FORMATS or part in _KINDS for part in number_format.split("/"))


def _rows(done: Work, chosen: np.ndarray, rows: int) -> Work:
    def pick(feature: Floats) -> Floats:
        picked: Floats = np.broadcast_to(feature, (rows,))[chosen]
        return picked

    return work.Work(
        pick(done.compute), pick(done.memory), tuple(map(pick, done.shape)), tuple(map(pick, done.machine))
    )


def _joined(parts: list[Work]) -> Work:
    return work.Work(
        np.concatenate([each.compute for each in parts]),
        np.concatenate([each.memory for each in parts]),
        tuple(map(np.concatenate, zip(*(each.shape for each in parts), strict=True))),
        tuple(map(np.concatenate, zip(*(each.machine for each in parts), strict=True))),
    )


def _gemm(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del key
    n, k, m = part.axes
    return work.gemm(system, number_format, m, n, k), (n >= _PRODUCT) & (k >= _PRODUCT)


def _heads(key: Key, heads: np.ndarray) -> work.Heads:
    kv_heads, size, window = (int(each) for each in key[-3:])
    return work.Heads(heads, heads if kv_heads == 0 else kv_heads, size, window)


def _context_attention(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    heads, length, batch = part.axes
    fmha, kv_cache = number_format.split("/")
    done = work.context_attention(system, (fmha, kv_cache), _heads(key, heads), batch, length)
    return done, length >= _PROMPT


def _generation_attention(
    system: System, number_format: str, key: Key, part: Slice
) -> tuple[Work, np.ndarray]:
    heads, batch, length = part.axes
    done = work.generation_attention(system, number_format, _heads(key, heads), batch, length)
    return done, length >= _CACHED


def _context_mla(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del key
    heads, length, batch = part.axes
    fmha, kv_cache = number_format.split("/")
    return work.context_mla(system, (fmha, kv_cache), heads, batch, length), length >= _PROMPT


def _generation_mla(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del key
    heads, batch, length = part.axes
    return work.generation_mla(system, number_format, heads, batch, length), length >= _CACHED


def _mla_bmm(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del key
    heads, tokens = part.axes
    return work.mla_bmm(system, number_format, heads, tokens), tokens > 0


def _moe(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    *split, tokens = part.axes
    skewed = str(key[2]).startswith("power_law")
    return work.moe(system, number_format, work.Experts(*split), tokens, skewed=skewed), tokens > 0


def _allreduce(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del number_format, key
    gpus, elements = part.axes
    return work.collective(system, 2, gpus, elements), (gpus <= _GROUP) & (elements >= _MESSAGE)


def _nccl(system: System, number_format: str, key: Key, part: Slice) -> tuple[Work, np.ndarray]:
    del key
    gpus, elements = part.axes
    return work.collective(system, _KINDS[number_format], gpus, elements), (gpus > 1) & (elements >= _MESSAGE)


_KINDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "alltoall": 1}
_READERS: dict[str, Callable[[System, str, Key, Slice], tuple[Work, np.ndarray]]] = {
    "gemm": _gemm,
    "context_attention": _context_attention,
    "generation_attention": _generation_attention,
    "context_mla": _context_mla,
    "generation_mla": _generation_mla,
    "mla_bmm": _mla_bmm,
    "moe": _moe,
    "custom_allreduce": _allreduce,
    "nccl": _nccl,
}
