"""What aegis asks of a real Slurm: `status` beside vec-inf's, `submit` beside bare sbatch, and the questions of waiting jobs.

The Slurm is that of the tests (tests/lab/slurm), made for this run. Its jobs are held in the queue and bear names that
vec-inf takes for its own, so that both tools tell of the same jobs; of jobs that wait, vec-inf has least to ask.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LAB = ROOT / "tests" / "lab" / "slurm" / "slurm-lab"
AEGIS = str(Path(sys.executable).parent / "aegis")
PEERS = ("vec-inf==0.9.0",)
PEER = Path(os.environ.get("AEGIS_BENCH_PEERS", "/nowhere")) / PEERS[0] / "bin" / "vec-inf"

ROUNDS = 11
FEW, MANY = 20, 500
MANY_ROUNDS = 3  # of aegis; vec-inf has one
PEER_LIMIT = 600.0  # seconds that vec-inf may take for many jobs
FASTER = 5.0  # at least so many times, for few jobs
OVERHEAD = 0.150  # seconds that a submission may take besides sbatch
WAITERS = 100
WATCHED_SECONDS = 60.0
SETTLE_SECONDS = 75.0  # until every waiter has come to its longest gap
COMMANDS = ("squeue", "sacct", "scontrol")

DEPLOYMENT = """\
model: bench/model
engine: sim
platform: generic-slurm
walltime: "01:00:00"
log_dir: {folder}/logs
endpoints_file: "{{run_dir}}/endpoints.txt"
directives: ["--hold"]
"""


class Run(NamedTuple):
    seconds: float
    out: str


class Bench:
    """A user of the lab, on its login node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "bench.yaml"
        self.config.write_text(DEPLOYMENT.format(folder=folder))
        self.counted = folder / "counted"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))},
            "PATH": f"{self._counting()}:{os.environ['PATH']}",
            "HOME": str(folder),
        }

    def _counting(self) -> Path:
        """Make stand-ins that note each question and hand it on."""
        folder = self.folder / "bin"
        folder.mkdir()
        for name in COMMANDS:
            file = folder / name
            file.write_text(f'#!/bin/sh\necho {name} >>{self.counted}\nexec {shutil.which(name)} "$@"\n')
            file.chmod(0o755)
        return folder

    def fresh(self) -> None:
        """Forget all jobs."""
        self.run("scancel", "--user", str(os.getuid()))
        self.environ["AEGIS_STATE_DIR"] = tempfile.mkdtemp(dir=self.folder)

    def questions(self) -> int:
        return len(self.counted.read_text().split()) if self.counted.exists() else 0

    def run(self, *argv: str, text: str = "", limit: float = 120.0) -> Run:
        began = time.perf_counter()
        done = subprocess.run(
            argv,
            env=self.environ,
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{argv} failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        return Run(seconds, done.stdout)

    def submit(self, count: int) -> list[str]:
        """Submit held jobs under names that vec-inf knows, and nothing else; return their handles."""
        import aegis  # noqa: PLC0415 - the part of it that measures runs without

        self.fresh()
        os.chdir(self.folder)
        client = aegis.Client(self.environ)
        return [client.submit(self.config, name=f"bench-{number}-vec-inf") for number in range(count)]


def status(bench: Bench, count: int, *, rounds: int, peer_rounds: int) -> float:
    """Print the seconds of both tools for so many jobs; return how many times faster aegis is."""
    bench.submit(count)
    ours: list[float] = []
    theirs: list[float] = []
    questions = 0
    for number in range(rounds + 1):
        before = bench.questions()
        run = bench.run(AEGIS, "status", "--json")
        questions = bench.questions() - before
        assert len(json.loads(run.out)) == count, run.out[:500]
        if number:
            ours.append(run.seconds)
        if PEER.exists() and number <= peer_rounds:
            before = bench.questions()
            peer = bench.run(str(PEER), "status", "--json-mode", limit=PEER_LIMIT)
            assert len(json.loads(peer.out)) == count, peer.out[:500]
            asked = bench.questions() - before
            if number or not peer_rounds:
                theirs.append(peer.seconds)
    mine = statistics.median(ours)
    line = f"status of {count:>3} jobs   aegis {mine * 1000:8.0f} ms, {questions} question"
    if not theirs:
        print(line)
        return 0.0
    other = statistics.median(theirs)
    print(f"{line}   vec-inf {other * 1000:8.0f} ms, {asked} questions   {other / mine:6.1f} x")
    return other / mine


def submission(bench: Bench) -> float:
    """Print the seconds of a submission and of bare sbatch; return the difference of the best of each.

    On a machine with other work the median tells of that, too.
    """
    bench.fresh()
    script = bench.folder / "job.sh"
    script.write_text(bench.run(AEGIS, "submit", "--config", str(bench.config), "--dry-run").out)
    ours: list[float] = []
    bare: list[float] = []
    for number in range(ROUNDS + 1):
        mine = bench.run(AEGIS, "submit", "--config", str(bench.config)).seconds
        other = bench.run("sbatch", "--parsable", str(script)).seconds
        if number:
            ours.append(mine)
            bare.append(other)
    empty = statistics.median(bench.run(sys.executable, "-c", "pass").seconds for _ in range(ROUNDS))
    began = time.perf_counter()
    bench.submit(ROUNDS)
    inside = (time.perf_counter() - began) / ROUNDS
    for name, choose in (("median", statistics.median), ("best", min)):
        mine, other = choose(ours), choose(bare)
        overhead = mine - other
        print(
            f"submit ({name}){'':<{8 - len(name)}}aegis {mine * 1000:8.0f} ms   bare sbatch {other * 1000:4.0f} ms"
            f"   overhead {overhead * 1000:4.0f} ms"
        )
    print(
        f"  an empty Python {empty * 1000:.0f} ms; a submission by one that runs already {inside * 1000:.0f} ms"
    )
    return overhead


def waiting(bench: Bench, count: int) -> int:
    """Return the questions of a minute while so many processes wait for a job of their own."""
    handles = bench.submit(count)
    waiters = [
        subprocess.Popen(
            [AEGIS, "wait", handle, "--for", "ready"],
            env=bench.environ,
            cwd=bench.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for handle in handles
    ]
    try:
        time.sleep(SETTLE_SECONDS)
        before = bench.questions()
        time.sleep(WATCHED_SECONDS)
        found = bench.questions() - before
        assert all(waiter.poll() is None for waiter in waiters), "a waiter has ended"
    finally:
        for waiter in waiters:
            waiter.send_signal(signal.SIGKILL)
        for waiter in waiters:
            waiter.wait()
    print(f"questions per minute of {count:>3} waiting processes: {found}")
    return found


def inside(folder: Path) -> None:
    """Measure, on the login node of the lab."""
    bench = Bench(folder)
    faster = status(bench, FEW, rounds=ROUNDS, peer_rounds=ROUNDS)
    overhead = submission(bench)
    one, many = waiting(bench, 1), waiting(bench, WAITERS)
    status(bench, MANY, rounds=MANY_ROUNDS, peer_rounds=0)
    print(f"limits: {FASTER:g} x vec-inf at {FEW} jobs, {OVERHEAD * 1000:.0f} ms, the questions of one")
    missed = []
    if PEER.exists() and faster < FASTER:
        missed.append(f"status of {FEW} jobs")
    if overhead > OVERHEAD:
        missed.append("submit")
    if many > one + 2:  # a minute may begin before a question or after it
        missed.append("waiting jobs")
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def main() -> None:
    if sys.argv[1:]:
        inside(Path(sys.argv[1]))
        return
    if subprocess.run(
        [LAB, "missing"],
        env={**os.environ, "SLURM_LAB_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip():
        print("left out: there is no Slurm to be started here (scripts/install-lab)")
        return
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        lab = Path(folder, "lab")
        readable = [ROOT, Path(sys.base_prefix), Path(sys.prefix), PEER.parents[1]]
        environ = {
            **os.environ,
            "SLURM_LAB_DIR": str(lab),
            "SLURM_LAB_OPEN": ":".join(str(path) for path in readable if path.exists()),
        }
        Path(folder).chmod(0o755)
        subprocess.run([LAB, "up"], env=environ, check=True)
        try:
            home = lab / "home" / "alice" / "bench"
            words = ["exec", "login", "alice"]
            subprocess.run([LAB, *words, "mkdir", home], env=environ, check=True)
            program = [sys.executable, str(Path(__file__).resolve()), str(home)]
            done = subprocess.run([LAB, *words, *program], env=environ, cwd="/", check=False)
        finally:
            subprocess.run([LAB, "down"], env=environ, check=True)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
