"""`aegis map` with something killed -9 at a random moment: how many outputs equal that of an undisturbed run.

A local job serves simulated models. Each run pushes the same rows through it; meanwhile one of these is killed, in turn:
the driver (`aegis map` itself), one instance, the agent's worker, the agent's guard. Killing either of the agent ends all
instances, as the loss of a node does; the job starts them again. The same command is then repeated until nothing is
left. Answers depend on the row alone (embeddings, echoed prompts), and every 50th row is too long, so that errors are compared too.

    python benchmarks/map_kills.py --runs 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.registry.client import RegistryClient

if TYPE_CHECKING:
    from collections.abc import Iterator

VICTIMS = ("driver", "instance", "agent's worker", "agent's guard")
ATTEMPTS = 10
POLICY = {"probe_interval": 0.2, "backoff_first": 0.2, "backoff_most": 0.5, "settled_after": 0.5}
SIM = ["--ttft-ms", "60", "--max-num-seqs", "8", "--max-model-len", "64"]


def write_rows(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            text = f"row {number}" + " and so on" * (30 if number % 50 == 49 else 1)
            embed = {"url": "/v1/embeddings", "body": {"model": "m", "input": text, "dimensions": 8}}
            echo = {
                "url": "/v1/completions",
                "body": {"model": "m", "prompt": text, "max_tokens": 4, "echo": True},
            }
            row = {"custom_id": f"c{number}", "method": "POST", **(echo if number % 2 else embed)}
            file.write(json.dumps(row) + "\n")


def comparable(output: Path) -> list[Any]:
    """Return the output without what no two answers share."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        if line["response"]:
            line["response"]["request_id"] = ""
            line["response"]["body"] |= {"id": "", "created": 0}
    return lines


class Fleet:
    """A local job."""

    def __init__(self, folder: Path, instances: int) -> None:
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")},
            "AEGIS_STATE_DIR": str(folder / "state"),
            "AEGIS_AGENT_POLICY": json.dumps(POLICY),
        }
        deployment = {
            "platform": "local", "log_dir": str(folder / "logs"), "model": "m", "engine": "sim",
            "instances": instances, "max_restarts": 1000, "extra_vllm_args": SIM,
        }  # fmt: skip
        (folder / "fleet.yaml").write_text(json.dumps(deployment))
        self.aegis("submit", "--config", "fleet.yaml", "--wait")
        self.handle = json.loads(self.aegis("status", "--json"))[-1]["job_id"]
        (manifest,) = folder.glob(f"logs/**/m.{self.handle.partition('://')[2]}.json")
        self.run_dir = manifest.parent
        self.registry = RegistryClient(json.loads(manifest.read_text())["registry_url"])

    def aegis(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "aegis", *arguments], cwd=self.folder, env=self.environ, capture_output=True,
            text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"aegis {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def start(self, output: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "aegis", "map", "rows.jsonl", "--output", output, self.handle, "--json"]
        return subprocess.Popen(
            argv, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def healthy(self) -> list[int]:
        """Return the processes of the instances that are healthy."""
        services = self.registry.services(status="healthy")
        return [service.metadata["pid"] for service in services if service.metadata.get("pid")]

    def agents(self, *, worker: bool) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            ours = any(os.fsencode(self.run_dir) in word for word in words)
            if ours and any(b"agent" in word for word in words) and (b"--worker" in words) is worker:
                found.append(int(entry.name))
        return found

    def kill(self, victim: str, driver: subprocess.Popen[str], chance: random.Random) -> bool:
        """Kill it; tell whether it was there."""
        if victim == "driver":
            pids = [driver.pid] if driver.poll() is None else []
        elif victim == "instance":
            pids = self.healthy()
        else:
            pids = self.agents(worker=victim.endswith("worker"))
        if not pids:
            return False
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def fleet(folder: Path, instances: int) -> Iterator[Fleet]:
    made = Fleet(folder, instances)
    try:
        yield made
    finally:
        made.aegis("shutdown", made.handle)


def ended(process: subprocess.Popen[str]) -> bool:
    """Tell whether a run ended by itself, with nothing left."""
    out, err = process.communicate(timeout=300)
    if process.returncode == -signal.SIGKILL:
        return False
    if process.returncode not in (0, 7):
        print(f"exit {process.returncode}: {err.strip()}")
        return False
    return bool(json.loads(out)["left"] == 0)


def disturbed(
    job: Fleet, output: str, victim: str, seconds: float, chance: random.Random
) -> tuple[bool, int]:
    """Push the rows through with a kill after some seconds; return whether something was killed, and the runs it took."""
    process = job.start(output)
    time.sleep(seconds)
    killed = job.kill(victim, process, chance)
    for attempt in range(1, ATTEMPTS + 1):
        if ended(process):
            return killed, attempt
        process = job.start(output)
    process.kill()
    process.wait()
    return killed, ATTEMPTS


def calm_run(folder: Path, rows: int, instances: int) -> tuple[list[Any], float]:
    """Return the output of an undisturbed run, and the seconds it took."""
    write_rows(folder / "rows.jsonl", rows)
    with fleet(folder, instances) as job:
        began = time.monotonic()
        assert ended(job.start("calm.jsonl"))
        took = time.monotonic() - began
    found = comparable(folder / "calm.jsonl")
    assert len(found) == rows
    return found, took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chance = random.Random(arguments.seed)
    right, killed, again = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        calm, takes = calm_run(folder, arguments.rows, arguments.instances)
        print(
            f"{arguments.rows} rows, {arguments.instances} instances; an undisturbed run takes {takes:.1f} s"
        )
        for first in range(0, arguments.runs, len(VICTIMS)):  # a job starts its agents again three times only
            with fleet(folder, arguments.instances) as job:
                for number in range(first, min(first + len(VICTIMS), arguments.runs)):
                    victim, output = VICTIMS[number - first], f"out{number}.jsonl"
                    was, runs = disturbed(job, output, victim, chance.uniform(0, takes), chance)
                    same = (folder / output).exists() and comparable(folder / output) == calm
                    killed[victim] += was
                    again[victim] += runs - 1
                    right[victim] += same
                    if not same:
                        print(f"run {number} ({victim}): WRONG", flush=True)
    for number, victim in enumerate(VICTIMS):
        runs = len(range(number, arguments.runs, len(VICTIMS)))
        told = f"{runs:3} runs, {killed[victim]:3} killed, {again[victim]:3} runs more"
        print(f"{victim:15} {told}: {right[victim]:3} right")
    print(f"{sum(right.values())} of {arguments.runs} outputs are right")


if __name__ == "__main__":
    main()
