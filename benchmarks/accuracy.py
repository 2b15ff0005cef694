"""Predictions against measured deployments: the test half, which nothing was fitted to, beside aiconfigurator 0.12.0.

Its predictions of the same rows are recorded (tests/fixtures/aiconfigurator); where it is installed, a sample is recomputed.
A row whose measurement stands in the fit half under another name is a copy and does not count; both figures are given.
Then each system in turn is left out of the fit, of the mechanism and of what it leaves over: what remains is a prediction for
a system that nobody has measured. (How alike errors are at all, some hundred variances, stays as it is carried along.)
"""

from __future__ import annotations

import json
import lzma
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aegis.planner.silicon.deployments import copies, flaw, shipped
from aegis.planner.silicon.fit import rows as fit_rows
from aegis.planner.silicon.fitted import fitted
from aegis.planner.silicon.predict import Prediction, predict
from aegis.planner.silicon.score import LEAST, Outcome, Score, by_group, counted, of_test_half, order, score
from aegis.planner.silicon.whole import fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.fitted import Fitted

PEERS = ("aiconfigurator==0.12.0",)
PEER = PEERS[0]
ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "fixtures" / "aiconfigurator" / "silicon-0.12.0.jsonl.xz"
RECORDER = ROOT / "scripts" / "aiconfigurator_silicon.py"
SAMPLE, SAME = 40, 1e-5  # rows that are recomputed; the recording has six digits
PLANS = 7
PLAN = "plan default --model QWEN3_32B --total_gpus 32 --system h200_sxm --isl 3000 --osl 512 --ttft 1000 --tpot 10"


def recorded() -> dict[str, dict[str, Any]]:
    """Return what 0.12.0 says of rows, by id: TTFT and TPOT (ms) and tokens/s of a GPU, or its error."""
    lines = lzma.decompress(RECORDED.read_bytes()).decode().splitlines()
    return {each["id"]: each for each in map(json.loads, lines)}


def recomputed(rows: Sequence[Deployment], known: dict[str, dict[str, Any]]) -> None:
    """Print how many of a sample 0.12.0 answers here as it is recorded."""
    python = Path(os.environ.get("AEGIS_BENCH_PEERS", "/nowhere")) / PEER / "bin" / "python"
    if not python.exists():
        print("    0.12.0 is not installed: nothing is recomputed")
        return
    there = [row.id for row in rows if row.id in known]
    asked = random.Random(0).sample(there, min(SAMPLE, len(there)))
    done = subprocess.run(
        [python, RECORDER], input="\n".join(asked), capture_output=True, text=True, check=True
    )
    same = 0
    for told in map(json.loads, done.stdout.splitlines()):
        before = known[told["id"]]
        same += all(
            math.isclose(told.get(name) or 0.0, before.get(name) or 0.0, rel_tol=SAME)
            for name in ("ttft", "tpot", "tsg")
        )
    print(f"    recomputed here: {same} of {len(asked)} as recorded")


def answered(rows: Iterable[Deployment], known: Fitted | None = None) -> list[Outcome]:
    """Return what Aegis predicts of rows, by what is carried along or another fit."""
    rows = tuple(rows)
    said = predict(rows, known=known)
    return [Outcome(row, each) for row, each in zip(rows, said, strict=True) if not isinstance(each, str)]


def theirs(
    outcomes: Iterable[Outcome], known: dict[str, dict[str, Any]]
) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes of rows that 0.12.0 answers too, and its own of the same."""
    both = [(each, known[each.row.id]) for each in outcomes if "ttft" in known.get(each.row.id, ())]
    own = [each for each, _ in both]
    return own, [Outcome(each.row, Prediction(told["ttft"], told["tpot"])) for each, told in both]


def line(name: str, found: Score) -> None:
    """Print one row of a table."""
    ranked = "" if found.order is None else f"{found.order:9.3f}"
    held = f"{found.tpot.held:8.1%}{found.ttft.held:8.1%}{found.throughput.held:8.1%}"
    print(
        f"    {name:<30}{found.rows:>6,}{found.tpot.median:8.1%}{found.tpot.mean:8.1%}{found.ttft.median:8.1%}"
        f"{found.ttft.mean:8.1%}{found.throughput.median:8.1%}{found.throughput.bias:+8.1%}{held}{ranked}"
    )


def head(title: str) -> None:
    print(f"\n{title}")
    columns = ("TPOT", "mean", "TTFT", "mean", "t/s/GPU", "bias", "in 80%", "TTFT", "t/s/GPU")
    print(f"    {'':<30}{'rows':>6}{''.join(f'{each:>8}' for each in columns)}{'order':>9}")


def left_out(name: str, rows: Sequence[Deployment], known: dict[str, dict[str, Any]]) -> bool:
    """Print what is predicted of a system by a fit without it, and by 0.12.0; return whether ours is nearer."""
    others = fit([row for row in fit_rows() if row.system != name], kernels=fitted())
    own, other = theirs(answered(rows, others), known)
    if not own:
        print(f"    {name:<30}{0:>6}  0.12.0 answers none of its {len(rows)} rows")
        return True
    ours, peer = score(own), score(other)
    line(f"{name}, left out", ours)
    line(f"{name}, 0.12.0", peer)
    return all(
        getattr(ours, figure).median < getattr(peer, figure).median
        for figure in ("tpot", "ttft", "throughput")
    )


def plan_seconds() -> float:
    """Return the wall time of one plan, a process of its own: the median of some."""
    with tempfile.TemporaryDirectory() as home:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))
        }
        argv = [str(Path(sys.executable).parent / "aegis"), *PLAN.split()]
        taken = []
        for _ in range(PLANS + 1):  # the first one warms the files
            start = time.perf_counter()
            subprocess.run(argv, env=environ | {"HOME": home}, capture_output=True, check=True)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def hold(what: str, held: bool) -> bool:
    print(f"{'held' if held else 'NOT HELD':<9} {what}")
    return held


def figures(found: Score) -> list[bool]:
    """Print what is claimed of the test half; return what holds."""
    held = [
        hold(f"{name} {value:.1%}, at most {most:.0%}", value <= most)
        for name, value, most in (
            ("TPOT, median error", found.tpot.median, 0.10),
            ("TPOT, mean error", found.tpot.mean, 0.18),
            ("TTFT, median error", found.ttft.median, 0.25),
            ("throughput of a GPU, median error", found.throughput.median, 0.10),
        )
    ]
    ranked = found.order or 0.0
    held.append(
        hold(
            f"rank correlation of throughput within a model and system {ranked:.3f}, at least 0.95",
            ranked >= 0.95,
        )
    )
    held += [
        hold(f"80% interval of {name} holds {share:.1%}, 75% to 85%", 0.75 <= share <= 0.85)
        for name, share in (
            ("TPOT", found.tpot.held),
            ("TTFT", found.ttft.held),
            ("throughput", found.throughput.held),
        )
    ]
    return held


def main() -> int:
    known = recorded()
    rows = counted(shipped(), of_test_half)
    again = [row for row in copies(shipped()) if not flaw(row)]
    print(
        f"{rows.of:,} rows of the test half: {len(rows.rows):,} may count, {rows.copies:,} are copies, left out by rule:"
    )
    for rule, count in rows.left_out.items():
        print(f"    {count:>6,}  {rule}")
    recomputed(rows.rows, known)
    own = answered(rows.rows)
    print(f"    without an answer: {len(rows.rows) - len(own)}")
    total, (same, peer) = score(own), theirs(own, known)
    head("test half, errors in the median unless said")
    line("all that count", total)
    line("with copies", score([*own, *answered(again)]))
    line("rows that 0.12.0 answers", score(same))
    line("0.12.0, the same rows", score(peer))
    claimed = [
        rate / each.measured("throughput") for each in peer if (rate := known[each.row.id]["tsg"]) is not None
    ]
    print(
        f"    {'0.12.0, its own tokens/s/gpu':<30}{len(claimed):>6,}{np.median(np.abs(np.array(claimed) - 1)):40.1%}"
    )
    for (system, backend), group in by_group(own, lambda row: (row.system, row.backend)).items():
        line(f"{system} {backend}", score(group))
    alike = order(own, lambda row: (row.model, row.system, str(row.isl), str(row.osl)))
    print(
        f"    rank correlation within a model, a system and lengths too, {LEAST} rows and more: {alike or 0:.3f}"
    )

    head("a system left out of the fit: its rows that 0.12.0 answers")
    beaten = {
        system: left_out(system, [each.row for each in group], known)
        for (system,), group in by_group(own, lambda row: (row.system,)).items()
    }
    print()
    held = figures(total)
    held += [
        hold(f"{name} left out of the fit: nearer than 0.12.0", nearer) for name, nearer in beaten.items()
    ]
    seconds = plan_seconds()
    held.append(hold(f"one plan takes {seconds:.2f} s, less than 1 s", seconds < 1))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
