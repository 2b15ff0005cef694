"""Collectives between the devices of this machine: one process for each, over torch.distributed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aegis.planner.collect.device import import_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KINDS = ("p2p", "all_reduce", "all_gather", "reduce_scatter")
LIBRARIES = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}
_MEETING = timedelta(minutes=2)


class Hop(NamedTuple):
    """A collective that was measured: the size of its gathered message in elements of 2 bytes."""

    kind: str
    gpus: int
    elements: int
    ms: float


def measure(kind: str, gpus: int, sizes: Sequence[int], seconds: float) -> list[Hop]:
    """Return what collectives of so many devices take, as far as they come in the time.

    What the library cannot do is left out; nothing comes back if the processes do not find each other.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="aegis-collect-") as folder:
        asked = _Asked(kind, gpus, tuple(sizes), seconds, folder)
        ranks = [context.Process(target=_rank, args=(asked, rank), daemon=True) for rank in range(gpus)]
        for each in ranks:
            each.start()
        limit = time.monotonic() + seconds + _MEETING.total_seconds()
        for each in ranks:
            each.join(max(0.0, limit - time.monotonic()))
            if each.is_alive():
                each.kill()
        return list(_hops(Path(folder) / "hops", gpus))


class _Asked(NamedTuple):
    kind: str
    gpus: int
    sizes: tuple[int, ...]
    seconds: float
    folder: str


def _hops(file: Path, gpus: int) -> Iterator[Hop]:
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            kind, elements, ms = json.loads(line)
            yield Hop(kind, gpus, elements, ms)


def _rank(asked: _Asked, rank: int) -> None:
    torch = import_torch()
    if asked.kind == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
    else:
        getattr(torch, asked.kind).set_device(rank)
    device = torch.device(asked.kind, rank) if asked.kind != "cpu" else torch.device("cpu")
    distributed = torch.distributed
    distributed.init_process_group(
        LIBRARIES[asked.kind],
        init_method=f"file://{asked.folder}/meeting",
        rank=rank,
        world_size=asked.gpus,
        timeout=_MEETING,
    )
    end = time.monotonic() + asked.seconds
    out = Path(asked.folder, "hops")
    with torch.inference_mode():
        for kind in KINDS:
            for elements in asked.sizes:
                # All must agree to stop, or some would wait for the others.
                late = torch.tensor([float(time.monotonic() > end)], device=device)
                distributed.all_reduce(late)
                if late.item():
                    break
                ms = _time(torch, device, kind, (rank, asked.gpus), elements)
                if ms is None:
                    break
                if rank == 0:
                    with out.open("a") as stream:
                        stream.write(json.dumps([kind, elements, ms]) + "\n")
    distributed.destroy_process_group()


def _time(torch: Any, device: Any, kind: str, place: tuple[int, int], elements: int) -> float | None:
    """Return ms on the slowest rank, or None if the library cannot do it (on any rank: all are alike)."""
    rank, gpus = place

    def wait() -> None:
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    # Not `median_ms`: all ranks must call equally often.
    call = _call(torch, device, kind, rank, (gpus, elements))
    try:
        call()
        wait()
    except (RuntimeError, NotImplementedError):
        return None
    times = 3 if elements > _MUCH else 10
    found = []
    for _ in range(_SAMPLES):
        torch.distributed.barrier()
        start = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        found.append((time.perf_counter() - start) / times)
    slowest = torch.tensor([sorted(found)[_SAMPLES // 2]], device=device, dtype=torch.float32)
    torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
    return float(slowest.item()) * 1000


_MUCH = 1 << 20  # elements
_SAMPLES = 5


def _call(torch: Any, device: Any, kind: str, rank: int, size: tuple[int, int]) -> Callable[[], object]:
    gpus, elements = size
    distributed = torch.distributed
    whole = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    part = torch.zeros(max(1, elements // gpus), dtype=torch.bfloat16, device=device)
    whole = whole[: len(part) * gpus]
    if kind == "all_reduce":
        return lambda: distributed.all_reduce(whole)
    if kind == "all_gather":
        return lambda: distributed.all_gather_into_tensor(whole, part)
    if kind == "reduce_scatter":
        return lambda: distributed.reduce_scatter_tensor(part, whole)
    if rank == 0:
        return lambda: distributed.send(whole, 1)
    return (lambda: distributed.recv(whole, 0)) if rank == 1 else (lambda: None)
