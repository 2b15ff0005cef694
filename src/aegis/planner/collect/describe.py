"""The description of a system from what was measured on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from aegis.planner.systems import System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aegis.planner.collect.device import Device, Traffic
    from aegis.planner.collect.journal import Journal
    from aegis.planner.collect.ranks import Hop

_GUESS = 1e11  # FLOPS, before any product was measured: only what is too large to measure depends on it
_LINK = 1e10  # bytes/s, of links that were not measured
_MIB = 2**20
# What the measured systems assume.
_COMMUNICATION = {1: 0, 2: 342 * _MIB, 4: 392 * _MIB, 8: 392 * _MIB}
_RUNTIME = 3584 * _MIB
_CPU_RUNTIME = 512 * _MIB


def describe(
    name: str, device: Device, traffic: Traffic, journal: Journal, hops: Iterable[Hop] = ()
) -> System:
    """Return the system: its best product as peak rate, its memory and its links as measured."""
    intra, latency = _link(list(hops))
    cpu = device.kind == "cpu"
    return System(
        name=name,
        title=device.title,
        memory_bandwidth=_rounded(traffic.bandwidth),
        memory_capacity=device.capacity,
        flops=_rates(journal) or {"bfloat16": _GUESS},
        sm_version=device.sm_version,
        gpus_per_node=device.count,
        intra_node_bandwidth=_rounded(intra),
        inter_node_bandwidth=_rounded(min(intra, 25e9)),
        p2p_latency=_rounded(latency),
        memory_efficiency=round(traffic.efficiency, 3),
        memory_latency=_rounded(traffic.latency),
        nccl_memory=dict.fromkeys(_COMMUNICATION, 0) if cpu else _COMMUNICATION,
        other_memory=_CPU_RUNTIME if cpu else _RUNTIME,
        source=f"measured by `aegis plan collect` on {device.title}; inter_node_bandwidth is assumed",
    )


def write_system(file: Path, system: System, write: Callable[[Path, str], None]) -> None:
    """Write the description as YAML, without what is as usual.

    Raises:
        OSError: it cannot be written.
    """
    import yaml  # noqa: PLC0415 - start-up time

    usual: dict[str, Any] = {
        field.name: field.default for field in msgspec.structs.fields(System) if not field.required
    }
    values = msgspec.to_builtins(system, str_keys=False)
    kept = {key: value for key, value in values.items() if key != "name" and usual.get(key) != value}
    write(file, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _rates(journal: Journal) -> dict[str, float]:
    """Return the best rate of products by format."""
    best: dict[str, float] = {}
    for (operation, key, axes), ms in journal.rows.items():
        if operation == "gemm" and ms:
            n, k, m = axes
            best[str(key[0])] = max(best.get(str(key[0]), 0.0), 2.0 * m * n * k / ms * 1000)
    return {name: _rounded(rate) for name, rate in best.items()}


def _link(hops: list[Hop]) -> tuple[float, float]:
    """Return bytes/s and s of what one device sends to another."""
    sent = [hop for hop in hops if hop.kind == "p2p"]
    if not sent:
        return _LINK, 1e-5
    return max(2 * hop.elements / hop.ms * 1000 for hop in sent), min(hop.ms for hop in sent) / 1000


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
