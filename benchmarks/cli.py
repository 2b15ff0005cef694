"""Start-up of the command line: wall time of light commands, beside an empty Python and `vec-inf --help`.

Every round runs each command once, so that a change of the machine's load meets all of them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 21
BASE = "python -c pass"
PEERS = ("vec-inf==0.9.0",)
PEER = "vec-inf --help"
LIMIT_PEER = 1 / 3  # of the peer's wall time
LIMIT_BASE = 5.0  # times an empty Python


def commands() -> dict[str, list[str]]:
    """Return what is measured, by the name that is printed."""
    here = Path(sys.executable).parent
    aegis = str(here / "aegis")
    measured = {
        BASE: [sys.executable, "-c", "pass"],
        "aegis --version": [aegis, "--version"],
        "aegis --help": [aegis, "--help"],
        "aegis platform list": [aegis, "platform", "list"],
        "aegis status": [aegis, "status"],
    }
    if peers := os.environ.get("AEGIS_BENCH_PEERS"):
        measured[PEER] = [str(Path(peers) / PEERS[0] / "bin" / "vec-inf"), "--help"]
    return measured


def wall_time(argv: list[str], environ: dict[str, str]) -> float:
    """Return the seconds that a command takes.

    Raises:
        CalledProcessError: it failed, so its time means nothing.
    """
    start = time.perf_counter()
    subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return time.perf_counter() - start


def measure() -> dict[str, float]:
    """Return the median seconds of each command, after one round to warm up."""
    measured = commands()
    times: dict[str, list[float]] = {name: [] for name in measured}
    with tempfile.TemporaryDirectory() as home:  # no jobs and no settings of the user's own
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))
        }
        environ |= {"HOME": home}
        for round_ in range(ROUNDS + 1):
            for name, argv in measured.items():
                seconds = wall_time(argv, environ)
                if round_:
                    times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    medians = measure()
    base, peer = medians[BASE], medians.get(PEER)
    print(f"{'command':<22}{'median ms':>10}{'x empty Python':>16}{'x vec-inf':>11}   ({ROUNDS} rounds)")
    missed = []
    for name, seconds in medians.items():
        to_peer = f"{seconds / peer:11.2f}" if peer else f"{'?':>11}"
        print(f"{name:<22}{seconds * 1000:10.1f}{seconds / base:16.2f}{to_peer}")
        if name.startswith("aegis") and (
            seconds > LIMIT_BASE * base or (peer and seconds > LIMIT_PEER * peer)
        ):
            missed.append(name)
    print(f"limits: {LIMIT_BASE:g} x an empty Python, {LIMIT_PEER:.2f} x vec-inf")
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
