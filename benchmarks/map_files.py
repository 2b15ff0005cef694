"""How well `aegis map --script` keeps instances busy: files of heavy-tailed size on eight of them.

The instances are names, and the program sleeps in proportion to the size of its file: what is measured is the schedule,
with everything that a file costs: worker, program, archive, rename, journal. Sizes are log-normal (sigma 1.2: the largest of
400 is some thirty times the median), in an order of chance.

The best possible is taken to be max(sum of all sleeps / slots, longest sleep): no schedule can be faster, and most cannot
reach it. For comparison, computed without any overhead: waves (one file per host, the next eight when all have ended, as
scripts with one ssh per host do), lists (each host has its eighth of the files, fixed before), and the same pull with
files in the order given.

    python benchmarks/map_files.py --files 400 --seconds 0.6
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from heapq import heapreplace
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.api.targets import Target
from aegis.mapper.files.run import FilesRun
from aegis.mapper.files.schedule import Rules
from aegis.mapper.files.script import Script
from aegis.mapper.files.site import Site
from aegis.mapper.files.work import Settings, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGMA = 1.2
BYTES_A_SECOND = 10_000
CLIENT = """sh -c 'read seconds < "$1"; exec sleep "$seconds"' - {input} {output}"""


class Fixed:
    """Instances that are only names."""

    def __init__(self, count: int) -> None:
        self._targets = tuple(Target("127.0.0.1", port, ("m",)) for port in range(1, count + 1))

    def now(self) -> tuple[int, tuple[Target, ...]]:
        return 0, self._targets


def draw(files: int, mean: float, seed: int) -> list[float]:
    """Return how long each file takes, in seconds."""
    chance = random.Random(seed)
    drawn = [chance.lognormvariate(0, SIGMA) for _ in range(files)]
    return [each * mean * files / sum(drawn) for each in drawn]


def pull(seconds: Sequence[float], slots: int) -> float:
    """Return when all are done, if each free slot takes the next."""
    ends = [0.0] * slots
    for each in seconds:
        heapreplace(ends, ends[0] + each)
    return max(ends)


def waves(seconds: Sequence[float], slots: int) -> float:
    return sum(max(seconds[start : start + slots]) for start in range(0, len(seconds), slots))


def lists(seconds: Sequence[float], slots: int) -> float:
    return max(sum(seconds[slot::slots]) for slot in range(slots))


def run(folder: Path, seconds: Sequence[float], instances: int, slots: int) -> float:
    """Return how long the real thing takes, workers' start and end included."""
    (folder / "in").mkdir()
    for number, each in enumerate(seconds):
        path = folder / "in" / f"{number:05}"
        path.write_text(f"{each:.4f}\n")
        os.truncate(path, max(8, int(each * BYTES_A_SECOND)))
    settings = Settings(rules=Rules(slots=slots), scratch=str(folder / "scratch"))
    (folder / "scratch").mkdir()
    began = time.monotonic()
    with FilesRun(Script.parse(CLIENT), (folder / "in").iterdir(), folder / "out", settings) as files:

        async def drive() -> None:
            await Work(files, Site(python=sys.executable), Fixed(instances)).run()

        asyncio.run(drive())
        outcome = files.outcome()
    took = time.monotonic() - began
    assert (outcome.done, outcome.failed, outcome.left) == (len(seconds), 0, 0)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.6, help="that a file takes on average")
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--slots", type=int, default=1, help="per instance")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds = draw(arguments.files, arguments.seconds, arguments.seed)
    slots = arguments.instances * arguments.slots
    best = max(sum(seconds) / slots, *seconds)
    ordered = sorted(seconds)
    print(
        f"{len(seconds)} files on {arguments.instances} instances of {arguments.slots} slots: "
        f"{sum(seconds):.1f} s of work, median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        took = run(Path(folder), seconds, arguments.instances, arguments.slots)
    rows = {
        "best possible": best,
        "aegis map, measured": took,
        "biggest first, no overhead": pull(ordered[::-1], slots),
        "as given, no overhead": pull(seconds, slots),
        "fixed lists, no overhead": lists(seconds, slots),
        "waves, no overhead": waves(seconds, slots),
    }
    for name, value in rows.items():
        print(f"{name:28} {value:7.1f} s   {best / value:6.1%} of the best   {value / took:5.2f}x aegis map")


if __name__ == "__main__":
    main()
