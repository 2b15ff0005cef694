"""Staging over MPI on one machine: seconds of the whole command, beside tar, a plain broadcast and plain copies.

Sources lie in the page cache, destinations on tmpfs; each rank has a destination of its own. In every round each way runs
once, so that a change of the machine's load meets all of them alike; the medians count.

    python benchmarks/staging.py [--rounds 5] [--ranks 1 2 4] [--scale 1.0] [--folder /dev/shm]

- tar: `tar -cf - | tar -xf -` for each rank, all at once
- broadcast: tar at both ends and MPI_Bcast of 1 GiB chunks between them, nothing overlapped (staging_baseline.c)
- copies: the limit, files copied to as many destinations by as many threads (staging_copy.c)

Needs `mpicc` and `mpiexec`. The tree takes 2 GB, and as much again for each rank.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aegis.staging.listing import encode
from aegis.staging.mpi import program
from aegis.staging.scan import scan

HERE = Path(__file__).parent
THREADS = max(2, min(8, len(os.sched_getaffinity(0))))  # what a rank of the program takes by itself
LARGE, SMALL = "4 x 500 MB", "400 x 5 MB + 20,000 x 4 kB"
OURS, TAR, BROADCAST, COPIES = "aegis", "tar", "broadcast", "copies"
FASTER = {LARGE: 3.0, SMALL: 2.0}  # than the broadcast, at two ranks
OF_LIMIT = 0.6
CHUNK_BYTES = 1 << 30  # of a rank of the broadcast
ROOM = 1.5  # times what is needed that must be free: memory that runs out ends somebody's process


def make_large(tree: Path, scale: float) -> None:
    """Write the large files; data is random, but not all of it is different."""
    data = os.urandom(32 << 20)
    for number in range(4):
        with (tree / f"{number}").open("wb") as file:
            left = int(500e6 * scale)
            while left:
                left -= file.write(data[number * 4096 : number * 4096 + min(left, 16 << 20)])


def make_small(tree: Path, scale: float) -> None:
    """Write the many files."""
    data = os.urandom(32 << 20)
    for number in range(int(20_000 * scale)):
        place = tree / f"{number // 1000}" / f"{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data[number * 1024 : number * 1024 + 4096])
    for number in range(int(400 * scale)):
        (tree / f"file{number}").write_bytes(data[number * 4096 : number * 4096 + 5_000_000])


TREES = {LARGE: make_large, SMALL: make_small}


def compiled(folder: Path, name: str, compiler: str) -> str:
    """Compile a program of this folder."""
    built = folder / name
    subprocess.run(
        [compiler, "-O2", "-pthread", HERE / f"{name}.c", "-o", built], check=True, stderr=subprocess.DEVNULL
    )
    return str(built)


def commands(folder: Path, source: Path, ranks: int) -> dict[str, list[str]]:
    """Return what is measured, for one tree."""
    there, list_file = folder / "out" / "there", folder / "list"
    list_file.write_bytes(encode([scan(str(source), str(there))]))
    mpiexec = ["mpiexec", "-n", str(ranks)]
    tar = " & ".join(
        f"(mkdir {there}.{rank} && tar -C {shlex.quote(str(source))} -cf - . | tar -C {there}.{rank} -xf -)"
        for rank in range(ranks)
    )
    ours = str(program(environ=os.environ, cache=folder))
    return {
        OURS: [*mpiexec, ours, str(list_file), "--dest-suffix-rank"],
        BROADCAST: [*mpiexec, str(folder / "staging_baseline"), str(source), str(there)],
        TAR: ["bash", "-c", f"{tar} & wait"],
        COPIES: [str(folder / "staging_copy"), str(source), str(there), str(ranks), str(ranks * THREADS)],
    }


def seconds(argv: list[str], out: Path) -> float:
    """Return how long a command takes with an empty destination.

    Raises:
        CalledProcessError: it failed, so its time means nothing.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path, source: Path, ranks: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of each way."""
    measured = commands(folder, source, ranks)
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, argv in measured.items():
            times[name].append(seconds(argv, folder / "out"))
    shutil.rmtree(folder / "out")
    return {name: statistics.median(each) for name, each in times.items()}


def fits(source: Path, ranks: int) -> bool:
    """Tell whether there is memory for the destinations and the chunks of so many ranks."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return ROOM * ranks * (size + CHUNK_BYTES) < free


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes and numbers of files")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    asked = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory(prefix="aegis-staging-", dir=asked.folder) as name:
        folder = Path(name)
        compiled(folder, "staging_baseline", "mpicc")
        compiled(folder, "staging_copy", "cc")
        print(
            f"medians of {asked.rounds}; sizes x {asked.scale:g}; {THREADS} threads a rank; load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'':28} ranks   aegis      tar       broadcast    copies     (seconds; times faster; of the limit)"
        )
        for tree, make in TREES.items():
            source = folder / "tree"
            source.mkdir()
            make(source, asked.scale)
            for ranks in asked.ranks:
                if not fits(source, ranks):
                    print(f"{tree:28} {ranks:5}  too little memory: try --scale {asked.scale / 2:g}")
                    missed.append(f"{tree}: not measured at {ranks} ranks")
                    continue
                took = measure(folder, source, ranks, asked.rounds)
                ours = took[OURS]
                print(
                    f"{tree:28} {ranks:5} {ours:7.2f}  {took[TAR]:6.2f} {took[TAR] / ours:4.1f}x"
                    f"  {took[BROADCAST]:6.2f} {took[BROADCAST] / ours:4.1f}x"
                    f"  {took[COPIES]:6.2f} {took[COPIES] / ours:4.0%}",
                    flush=True,
                )
                if ranks == 2 and took[BROADCAST] / ours < FASTER[tree]:
                    missed.append(f"{tree}: not {FASTER[tree]:g} times as fast as the broadcast at 2 ranks")
                if took[COPIES] / ours < OF_LIMIT:
                    missed.append(f"{tree}: below {OF_LIMIT:.0%} of the limit at {ranks} ranks")
            shutil.rmtree(source)
    print("\n".join(missed) or "all goals are met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
