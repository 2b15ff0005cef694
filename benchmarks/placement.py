"""How long placing a fleet takes, and that it grows with the number of instances only.

Run `python benchmarks/placement.py`. The node has 12 devices in 6 cards and 2 sockets, with CPU lists.
"""

from __future__ import annotations

import gc
import time

from aegis.placement import place
from aegis.spec.deployment import ModelEntry
from aegis.spec.platform import Node

NODE = Node(
    devices=12,
    devices_per_card=2,
    sockets=((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)),
    device_cpus=tuple(f"{first}-{first + 7}" for first in (*range(1, 49, 8), *range(53, 101, 8))),
)
COUNTS = (1_000, 10_000, 100_000)
ROUNDS = 3


def models(shape: str, instances: int) -> list[ModelEntry]:
    sizes = {
        "one per node, tensor 12": [(12, instances)],
        "twelve per node, tensor 1": [(1, instances)],
        "two nodes each, tensor 24": [(24, instances)],
        "mix of tensor 8, 4, 3, 1": [(size, instances // 4) for size in (8, 4, 3, 1)],
    }[shape]
    return [ModelEntry(model=f"M{size}", instances=n, tensor_parallel_size=size) for size, n in sizes]


def seconds(shape: str, instances: int) -> tuple[float, int]:
    entries = models(shape, instances)
    best, nodes = float("inf"), 0
    for _ in range(ROUNDS):
        gc.collect()
        start = time.perf_counter()
        nodes = place(entries, NODE, port_start=8000, reserved_ports=(8471,)).nodes
        best = min(best, time.perf_counter() - start)
    return best, nodes


def main() -> None:
    print(f"placement: best of {ROUNDS}; growth 1.0 is linear")
    for shape in (
        "one per node, tensor 12",
        "twelve per node, tensor 1",
        "two nodes each, tensor 24",
        "mix of tensor 8, 4, 3, 1",
    ):
        before = 0.0
        for instances in COUNTS:
            taken, nodes = seconds(shape, instances)
            each = taken / instances * 1e6
            growth = f"{each / before:.2f}" if before else "-"
            print(
                f"{shape:27} {instances:7} instances {nodes:7} nodes {taken:7.3f} s {each:5.2f} us each  growth {growth}"
            )
            before = each


if __name__ == "__main__":
    main()
