"""The real vLLM (CPU build) under the agent: it answers, dies, comes back, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import Lab, chat, request, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Job

pytestmark = [pytest.mark.lab, pytest.mark.vllm, pytest.mark.timeout(240)]
START_SECONDS = 180.0
ARGS = ["--enforce-eager", "--max-model-len", "2048", "--kv-cache-memory-bytes", "64M"]
NAME = "tiny"
FIRST = "tiny-0"


def keys(venv: Path, model: Path, *args: str) -> dict[str, Any]:
    return {
        "model": str(model),
        "served_model_name": NAME,
        "engine": "vllm",
        "venv": str(venv),
        "extra_vllm_args": [*ARGS, *args],
        "startup_timeout": int(START_SECONDS),
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, vllm_venv: Path, tiny_model: Path) -> Iterator[Job]:
    """One server for the whole file: each start takes ten seconds and more."""
    folder = tmp_path_factory.mktemp("vllm")
    lab = Lab(folder, f"{folder.name}-{os.getpid()}")
    lab.policy(probe_interval=1.0)
    try:
        yield lab.submit(timeout=START_SECONDS, **keys(vllm_venv, tiny_model))
    finally:
        lab.close()


def test_it_answers(job: Job) -> None:
    (endpoint,) = job.endpoints
    answer = chat(endpoint, NAME)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["message"]["content"]


def test_it_streams(job: Job) -> None:
    body = {"model": NAME, "prompt": "ka lo", "max_tokens": 8, "stream": True}
    code, text = request(job.endpoints[0], "POST", "/v1/completions", body)
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert code == 200
    assert events[-1] == "[DONE]"
    assert len(events) > 4
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def test_its_load_is_in_the_registry(job: Job) -> None:
    before = chat(job.endpoints[0], NAME)["usage"]["total_tokens"]

    def load() -> Any:
        found = job.service(FIRST)["metadata"].get("load") or {}
        return found if found.get("tokens", 0) >= before else None

    seen = wait_until(load, "tokens in the registry")
    assert {"running", "waiting", "kv_cache", "tokens"} <= set(seen)


def test_its_metrics_are_shown_as_they_grow(job: Job) -> None:
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            chat(job.endpoints[0], NAME)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        answer = job.lab.aegis("metrics", job.handle, "--once", "--watch", "2", "--json")
    finally:
        over.set()
        thread.join()
    found = json.loads(answer.out)
    rates = {name: value for name, value in found["metrics"].items() if name.endswith("_per_sec")}
    assert set(rates) == {"prompt_tokens_per_sec", "generation_tokens_per_sec", "requests_per_sec"}
    assert all(value > 0 for value in rates.values())
    assert rates["generation_tokens_per_sec"] == pytest.approx(8 * rates["requests_per_sec"], rel=0.5)
    assert 0 <= found["metrics"]["gpu_cache_usage"] < 1
    assert found["metrics"]["prefix_cache_hit_rate"] >= 0
    for name in ("time_to_first_token", "time_per_output_token", "request_latency"):
        latency = found["latencies"][name]["window"]
        assert latency["count"] > 0
        assert 0 < latency["mean"] < 20
        assert latency["p50"] <= latency["p90"] <= latency["p99"]


def test_a_killed_server_leaves_no_worker_and_comes_back(job: Job) -> None:
    endpoints = job.endpoints
    server = job.engine(FIRST)
    group = [each for each in job.lab.processes() if os.getpgid(each.pid) == server.pid]
    assert len(group) > 1, "an EngineCore process is part of it"
    server.kill()
    wait_until(lambda: job.endpoints == [], seconds=5)
    wait_until(lambda: not any(each.is_alive for each in group), "the old processes are gone", 15)
    service = job.wait_for(FIRST, "healthy", START_SECONDS)
    assert service["metadata"]["restarts"] == 1
    wait_until(lambda: job.endpoints == endpoints, seconds=5)
    assert chat(endpoints[0], NAME)["choices"]


def test_a_killed_engine_core_comes_back(job: Job) -> None:
    server = job.engine(FIRST)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    restarts = job.service(FIRST)["metadata"]["restarts"]
    core = next(
        each
        for each in job.lab.processes()
        if str(each.pid) in children and ("EngineCore" in each.command or "spawn_main" in each.command)
    )
    core.kill()
    wait_until(lambda: job.service(FIRST)["metadata"].get("restarts") == restarts + 1, seconds=60)
    job.wait_for(FIRST, "healthy", START_SECONDS)
    (endpoint,) = wait_until(lambda: job.endpoints, "the endpoints file follows the registry")
    assert chat(endpoint, NAME)["choices"]


def test_shutdown_leaves_nothing(job: Job) -> None:
    assert any("EngineCore" in each.command or "spawn" in each.command for each in job.lab.processes())
    job.lab.aegis("shutdown", job.handle)
    assert job.lab.is_empty()
    assert not job.endpoints_file.exists()


def test_a_wrong_flag_is_named(lab: Lab, vllm_venv: Path, tiny_model: Path) -> None:
    config = lab.deployment(**keys(vllm_venv, tiny_model, "--no-such-flag"))
    said = lab.aegis("launch", "--config", config, code=1, timeout=120)
    assert "error: the instance failed: engine arguments: unrecognized arguments: --no-such-flag" in said.err
    assert "next start" not in said.err


def test_a_model_that_is_no_model(lab: Lab, vllm_venv: Path) -> None:
    (empty := lab.path / "empty").mkdir()
    config = lab.deployment(**keys(vllm_venv, empty))
    said = lab.aegis("launch", "--config", config, code=1, timeout=120)
    assert "error: the instance failed: " in said.err
    assert str(empty) in said.err.partition("error: ")[2]
    assert "next start" not in said.err


def test_a_server_that_answers_health_and_no_request_is_never_healthy(lab: Lab, vllm_venv: Path) -> None:
    """vLLM 0.32 on a CPU takes a head size of 16, says that it is healthy, and dies at the first request."""
    model = lab.path / "model"
    maker = Path(__file__).parents[2] / "scripts" / "make_tiny_model.py"
    python = str(vllm_venv / "bin" / "python")
    subprocess.run([python, str(maker), str(model), "--head-dim", "16"], check=True, capture_output=True)
    config = lab.deployment(**{**keys(vllm_venv, model), "max_restarts": 0})
    said = lab.aegis("launch", "--config", config, code=1, timeout=150)
    assert said.out == ""
    assert f"{FIRST} healthy" not in said.err
    assert "Unsupported CPU attention configuration" in said.err.partition("error: ")[2]


def test_prompts_get_through_two_servers_of_which_one_is_killed(
    lab: Lab, vllm_venv: Path, tiny_model: Path
) -> None:
    rows = [{"text": f"ka lo {number}"} for number in range(200)] + [{"text": "ka " * 5000}]
    (lab.work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lab.policy(probe_interval=1.0)
    job = lab.submit(timeout=START_SECONDS, instances=2, gpus_per_node=2, **keys(vllm_venv, tiny_model))
    asked = ("--prompt", "{text} mi", "--max-tokens", 64, "--param", "ignore_eos=true", "--concurrency", 4)
    run = lab.start("map", "rows.jsonl", "--output", "answers.jsonl", job.handle, *map(str, asked))
    journal = lab.work / "answers.jsonl.journal"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 60, "a part is done", 60)
    job.engine("tiny-1").kill()
    assert run.wait(120) == 7
    assert "1 row failed; see its error in answers.jsonl" in lab.output(run).err
    answers = [json.loads(line) for line in (lab.work / "answers.jsonl").read_text().splitlines()]
    assert [each["custom_id"] for each in answers] == [str(number + 1) for number in range(201)]
    assert all(each["response"]["body"]["usage"]["completion_tokens"] == 64 for each in answers[:-1])
    assert answers[-1]["error"]["code"] == "context_length_exceeded"
