"""What aiconfigurator 0.12.0 predicts of its own measured deployments: ids on stdin, a JSON object a line on stdout.

Run with the Python of its environment: tests/fixtures/aiconfigurator/silicon-0.12.0.jsonl.xz was recorded with it, and
benchmarks/accuracy.py compares that with a sample.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import aiconfigurator_core
from aiconfigurator.cli.api import cli_estimate

ROWS = Path(aiconfigurator_core.__file__).parent / "systems" / "silicon_sample.csv"
FLAGS = {"system": "system_name", "backend": "backend_name"}  # column -> what `cli_estimate` calls it
NOT_ASKED = {
    "id",
    "silicon_data_source",
    "backend_version",
    "precision",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
}
# Models whose files it has under another name.
NAMES = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
ONE_OF_EACH = {"prefill_batch_size": 1, "prefill_num_workers": 1, "decode_num_workers": 1}  # where not told


def question(row: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of `cli_estimate` for a row; what a row leaves empty is not told."""
    asked: dict[str, Any] = {
        FLAGS.get(name, name): int(value) if value.isdigit() else value
        for name, value in row.items()
        if value and name not in NOT_ASKED
    }
    asked["model_path"] = NAMES.get(asked["model_path"], asked["model_path"])
    return ONE_OF_EACH | asked if asked["mode"] == "disagg" else asked


def main() -> None:
    """Answer for each id."""
    with ROWS.open(encoding="utf-8") as lines:
        rows = {row["id"]: row for row in csv.DictReader(lines)}
    for identity in sys.stdin.read().split():
        told: dict[str, Any]
        try:
            found = cli_estimate(**question(rows[identity]))
            rate = found.raw["tokens/s/gpu"]
            told = {"ttft": found.ttft, "tpot": found.tpot, "tsg": None if math.isnan(rate) else rate}
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"id": identity, **told}), flush=True)


if __name__ == "__main__":
    main()
