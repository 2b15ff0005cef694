"""The planner, cold: wall time, CPU and memory of whole commands, beside both releases of aiconfigurator.

Then the growth with the number of configurations that one pass evaluates. Peers take seconds to minutes and run once
(their CPU time hardly changes between runs); Aegis runs several times, and the median counts.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PEERS = (
    "aiconfigurator==0.3.0 plotext==5.3.2",  # it cannot draw with later ones
    "aiconfigurator==0.12.0",
)
OLD, NEW = (name.split()[0] for name in PEERS)
ROUNDS = 7
EXAMPLE = (
    Path(__file__).parents[1] / "tests" / "fixtures" / "planner" / "experiments" / "example.yaml"
)  # the guide's

GUIDE = "--total_gpus 32 --system h200_sxm --isl 3000 --osl 512 --ttft 1000 --tpot 10"
DEEPSEEK = "--total_gpus 32 --system h200_sxm --isl 4000 --osl 1000 --ttft 2000 --tpot 40"


class Usage(NamedTuple):
    """What one run of a command took."""

    wall: float  # s
    cpu: float  # s, user and system
    peak: float  # MiB


class Case(NamedTuple):
    """One question, asked of each tool in its own words; and what is claimed."""

    name: str
    aegis: str
    peers: dict[str, str]
    faster: float = 1.0  # at least so many times less CPU than 0.12.0 (or, where that cannot answer, 0.3.0)
    wall: float | None = None  # at most, s


CASES = (
    Case(
        "the guide's example",
        f"default --model QWEN3_32B {GUIDE}",
        {
            OLD: f"cli default --model QWEN3_32B {GUIDE}",
            NEW: f"cli default --model-path Qwen/Qwen3-32B-FP8 {GUIDE.replace('_gpus', '-gpus')}",
        },
        faster=20,
        wall=0.6,
    ),
    Case(
        "the guide's example, --estimator guide",
        f"default --model QWEN3_32B {GUIDE} --estimator guide",
        {},
        wall=0.6,
    ),
    Case(
        "DEEPSEEK_V3, agg and disagg",
        f"default --model DEEPSEEK_V3 {DEEPSEEK}",
        {
            OLD: f"cli default --model DEEPSEEK_V3 {DEEPSEEK}",
            NEW: f"cli default --model-path deepseek-ai/DeepSeek-V3 {DEEPSEEK.replace('_gpus', '-gpus')}",
        },
        faster=50,
    ),
    Case(
        "the guide's full experiment file",
        f"exp --yaml_path {EXAMPLE}",
        {OLD: f"cli exp --yaml_path {EXAMPLE}"},
        faster=50,
    ),
    Case(
        "what should I ask for? (all systems, all backends)",
        "default --model QWEN3_32B --total_gpus 32 --system any --backend any",
        {},
        wall=5.0,
    ),
)


def run(argv: list[str], environ: dict[str, str]) -> Usage:
    """Run a command and return what it took.

    Raises:
        CalledProcessError: it failed, so its time means nothing.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, argv, output.read()[-2000:])
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def peer(name: str, words: str, environ: dict[str, str]) -> Usage | None:
    """Return what a peer took, or None where it is not installed or cannot answer."""
    program = Path(os.environ.get("AEGIS_BENCH_PEERS", "/nowhere")) / name / "bin" / "aiconfigurator"
    if not program.exists():
        return None
    try:
        return run([str(program), *words.split()], environ)
    except subprocess.CalledProcessError as error:
        print(f"    {name} fails: {error.output.decode(errors='replace').splitlines()[-1:]}")
        return None


def median(usages: list[Usage]) -> Usage:
    return Usage(*(statistics.median(column) for column in zip(*usages, strict=True)))


def measure(case: Case, environ: dict[str, str]) -> bool:
    """Print one case; return whether every claim holds."""
    aegis = [str(Path(sys.executable).parent / "aegis"), "plan", *case.aegis.split()]
    run(aegis, environ)  # warm: files read once, bytecode there
    own = median([run(aegis, environ) for _ in range(ROUNDS)])
    print(f"\n{case.name}\n    {'':<24}{'wall s':>9}{'CPU s':>9}{'MiB':>7}{'x CPU':>9}")
    print(f"    {'aegis':<24}{own.wall:9.3f}{own.cpu:9.3f}{own.peak:7.0f}")
    ratios = []
    for name, words in case.peers.items():
        if theirs := peer(name, words, environ):
            ratios.append(theirs.cpu / own.cpu)
            print(f"    {name:<24}{theirs.wall:9.2f}{theirs.cpu:9.2f}{theirs.peak:7.0f}{ratios[-1]:9.1f}")
    held = own.peak < 200 and (case.wall is None or own.wall < case.wall)
    return held and (not ratios or ratios[-1] >= case.faster)


def growth() -> None:
    """Print the time of one pass over 10^4, 10^5 and 10^6 configurations of one worker."""
    import numpy as np  # noqa: PLC0415 - only here

    from aegis.planner.estimator import ESTIMATORS  # noqa: PLC0415 - only here
    from aegis.planner.problem import Load, Parallel, Tuning  # noqa: PLC0415 - only here
    from aegis.planner.single import Asked, worker_of  # noqa: PLC0415 - only here
    from aegis.planner.task import WorkerQuestion  # noqa: PLC0415 - only here

    load = Load(isl=3000, osl=512)
    worker = worker_of(
        Asked(
            worker=WorkerQuestion(model="QWEN3_32B", system="h200_sxm"),
            split=Parallel(tp=4),
            load=load,
            tuning=Tuning(),
            estimator=ESTIMATORS["aegis"],
        )
    )
    worker.mixed(np.array([512]), np.array([1]), load)  # opens the tables
    print("\none pass over many configurations (mixed steps of one worker)")
    first = 0.0
    for count in (10**4, 10**5, 10**6):
        random = np.random.default_rng(0)
        tokens = random.integers(512, 16384, count)
        decodes = random.integers(1, 512, count)
        start = time.perf_counter()
        worker.mixed(tokens, decodes, load)
        seconds = time.perf_counter() - start
        first = first or seconds / count
        print(
            f"    {count:>9,}  {seconds:7.3f} s  {seconds / count * 1e6:6.2f} us each  x{seconds / count / first:.2f}"
        )
    print(f"    peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def events() -> None:
    """Print how long the events of all points of a question take, beside the simulation of one point, step by step."""
    import numpy as np  # noqa: PLC0415 - only here

    from aegis.planner.estimate.batching import Engine, simulate  # noqa: PLC0415 - only here
    from aegis.planner.estimate.closed_loop import turns  # noqa: PLC0415 - only here
    from aegis.planner.problem import Load  # noqa: PLC0415 - only here
    from aegis.planner.search.agg import BATCHES  # noqa: PLC0415 - only here
    from aegis.planner.search.context_tokens import context_tokens  # noqa: PLC0415 - only here

    class Equal:
        """Steps that all take a millisecond."""

        def mixed(self, chunk: int, requests: int) -> float:
            del chunk, requests
            return 1.0

        def decode(self, requests: int, length: float) -> float:
            del requests, length
            return 1.0

    load = Load(isl=3000, osl=512)
    start = time.perf_counter()
    simulate(Engine(64, load.isl, spread=0.1), Equal(), load)
    one = time.perf_counter() - start
    print(f"\ncontinuous batching\n    a point of 64 users, step by step   {one:7.3f} s")
    for chunked, osl in ((False, 512), (True, 511)):  # another length: nothing is known of it yet
        sizes = context_tokens(load.isl, rules="current", chunked=chunked)
        batch, chunk = (each.ravel() for each in np.meshgrid(BATCHES, sizes))
        start = time.perf_counter()
        turns(batch, chunk, isl=load.isl, steps=osl - 1)
        seconds = time.perf_counter() - start
        print(f"    events of {len(batch):4} points at once        {seconds:7.3f} s  x{seconds / one:.1f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))
        }
        environ |= {"HOME": home, "COLUMNS": "120"}
        missed = [case.name for case in CASES if not measure(case, environ)]
    growth()
    events()
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
