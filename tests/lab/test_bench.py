"""`aegis bench` with the real `vllm bench serve` (CPU build), on simulated servers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import sim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Sim

    from .conftest import Lab

__all__ = ["sim"]
pytestmark = [pytest.mark.lab, pytest.mark.vllm, pytest.mark.timeout(180)]


def test_the_real_client_measures_each_server_and_says_what_one_refused(
    lab: Lab, sim: Callable[..., Sim], vllm_venv: Path, tiny_model: Path
) -> None:
    servers = [sim("--api-key", "very-secret"), sim("--api-key", "very-secret", "--error-rate", "1")]
    (lab.work / "aegis_endpoints.txt").write_text("".join(f"127.0.0.1:{each.port}\n" for each in servers))
    lab.environ |= {
        "PATH": f"{vllm_venv / 'bin'}:{lab.environ['PATH']}",
        "VLLM_API_KEY": "very-secret",
        "HF_HUB_OFFLINE": "1",
    }
    load = ("--num-prompts", "12", "--concurrency", "4", "--input-tokens", "32", "--output-tokens", "8")
    tokenizer = ("--tokenizer", tiny_model)
    done = lab.aegis("bench", *load, "--json", "--output", "out.csv", "--", *tokenizer, timeout=120, code=7)
    found = json.loads(done.out)
    good, bad = found["endpoints"]
    assert (good["completed"], good["failed"], good["error"]) == (12, 0, None)
    assert good["total_output_tokens"] == 12 * 8
    for latency in ("ttft", "tpot", "itl", "e2el"):
        assert {f"{which}_{latency}_ms" for which in ("mean", "median", "p90", "p99")} <= set(good)
    assert (bad["completed"], bad["failed"]) == (0, 12)
    assert "12 of 12 requests failed" in bad["error"]
    assert (lab.work / "out.csv").read_text().count("SUMMARY") == 4
    assert "very-secret" not in done.out + done.err
