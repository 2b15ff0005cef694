"""Launch of 200 simulated servers on 50 simulated nodes, until the registry knows every one as healthy.

Each node has an agent and a loopback address of its own, so that the whole path is real but the model. What bounds it is
shown beside it: the CPU seconds that 200 such servers need for their own start, measured alone, over the cores there are.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NODES = 50
PER_NODE = 4
DEADLINE = 300.0
SAMPLE = 10  # servers started alone, one after the other, for their CPU time

DEPLOYMENT = """\
model: bench/model
engine: sim
instances: {instances}
platform: {platform}
log_dir: {folder}/logs
endpoints_file: {folder}/endpoints
"""
PLATFORM = """\
extends: local
nodes: {nodes}
node: {{devices: {devices}}}
"""


def cpu_of_one() -> float:
    """Return the CPU seconds that one server takes, alone on the machine, from its start to the open port."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(SAMPLE):
        process = subprocess.Popen(
            [sys.executable, "-m", "aegis", "sim", "m", "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        process.wait()
        process.stderr.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / SAMPLE


def launch(folder: Path) -> tuple[float, float]:
    """Return the wall seconds to all healthy, and the CPU seconds of the machine until then."""
    (folder / "site.yaml").write_text(PLATFORM.format(nodes=NODES, devices=PER_NODE))
    (folder / "fleet.yaml").write_text(
        DEPLOYMENT.format(instances=NODES * PER_NODE, platform=folder / "site.yaml", folder=folder)
    )
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    began, busy = time.perf_counter(), _busy()
    process = subprocess.Popen(
        [sys.executable, "-m", "aegis", "launch", "--config", str(folder / "fleet.yaml")],
        stdout=subprocess.PIPE,
        stderr=(folder / "err").open("wb"),
        env=environment,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        watchdog = time.monotonic() + DEADLINE
        count = 0
        while count < NODES * PER_NODE and time.monotonic() < watchdog:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the launch ended: {(folder / 'err').read_text()[-2000:]}")
            count += 1
        return time.perf_counter() - began, _busy() - busy
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _busy() -> float:
    """Return the CPU seconds that this machine has worked since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    one = cpu_of_one()
    cores = len(os.sched_getaffinity(0))
    total = NODES * PER_NODE
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = launch(Path(folder))
    bound = one * total / cores
    print(
        f"{total} servers on {NODES} nodes healthy after {wall:.1f} s; the machine worked {cpu:.1f} CPU s on {cores} cores"
    )
    print(
        f"one server alone starts in {one:.2f} CPU s: {total} of them need {bound:.1f} s on {cores} cores at the least"
    )
    print(f"ratio to that bound: {wall / bound:.2f}")


if __name__ == "__main__":
    main()
