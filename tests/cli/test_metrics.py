"""`aegis metrics`: a job whose registry and servers are of this test."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.processes import start_of
from aegis.registry.model import Service
from aegis.runs import Manifest, RunDir, register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Outcome

HANDLE = "local://abc234"
FIRST, SECOND = "m-0", "m-1"
SUM = 'vllm:e2e_request_latency_seconds_sum{engine="0"}'


def page(looks: int) -> str:
    """Return a page on which 10 prompt tokens and a request of 0.5 s are added by each look."""
    return (
        'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="1"} 2\n'
        'vllm:num_requests_waiting{engine="0"} 4\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
        f'vllm:prompt_tokens_total{{engine="0"}} {1000 + 10 * looks}\n'
        f'vllm:generation_tokens_total{{engine="0"}} {5 * looks}\n'
        f'vllm:request_success_total{{finished_reason="stop"}} {looks}\n'
        f'vllm:e2e_request_latency_seconds_bucket{{le="1.0"}} {looks}\n'
        f'vllm:e2e_request_latency_seconds_bucket{{le="+Inf"}} {looks}\n'
        f"{SUM} {0.5 * looks}\n"
        f"vllm:e2e_request_latency_seconds_count {looks}\n"
    )


class Fleet:
    """A registry and the servers that it lists, all at one address."""

    def __init__(self, run: RunDir, environ: Any) -> None:
        self.run, self.environ = run, environ
        self.looks = 0
        self.states = {FIRST: "healthy", SECOND: "healthy"}
        self.broken = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = fleet.answer(self.path)
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called
                pass

        return Handler

    def answer(self, path: str) -> tuple[int, bytes]:
        if path.startswith("/metrics"):
            self.looks += 1
            return (500, b"no") if self.broken else (200, page(self.looks).encode())
        return 200, msgspec.json.encode([self.service(name) for name in self.states])

    def service(self, name: str) -> Service:
        return Service(
            service_id=name,
            host="127.0.0.1",
            port=self.server.server_port,
            service_type="vllm",
            status=self.states[name],  # type: ignore[arg-type]
            last_seen=time.time(),
            metadata={"model": "org/m", "reason": "out of memory" if self.states[name] == "failed" else ""},
        )

    def note(self, **fields: Any) -> None:
        manifest = Manifest(
            job=HANDLE,
            name="m",
            models=["org/m"],
            run_dir=str(self.run.path),
            state="LAUNCHING",
            created=time.time(),
            ready=time.time(),
            host=os.uname().nodename,
            pid=os.getpid(),
            pid_started=start_of(os.getpid()),
            instances=2,
            registry_url=f"http://127.0.0.1:{self.server.server_port}",
        )
        self.run.write_manifest(msgspec.structs.replace(manifest, **fields))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path / "state"))
    run = RunDir.create(str(tmp_path / "logs"), "m", "abc234")
    register(HANDLE, run, os.environ)
    made = Fleet(run, os.environ)
    made.note()
    yield made
    made.close()


def test_once_in_a_pipe(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    outcome = aegis("metrics", HANDLE, "--watch", "0.1", "--once")
    assert (outcome.code, outcome.err) == (0, "")
    head = outcome.out.splitlines()[0]
    assert re.fullmatch(rf"{HANDLE}  org/m  2/2 servers  last \d+\.\d s", head)
    rows = dict(re.findall(r"^(\S.*?)  +(\S.*)$", outcome.out, re.MULTILINE))
    assert rows["Requests Running"] == "6 reqs"
    assert rows["Requests Waiting"] == "8 reqs"
    assert rows["KV Cache Usage"] == "25.0%"
    assert rows["Requests Finished"] == "stop 7"
    latency = rows["Request Latency"].split()
    assert (latency[:2], latency[-2:]) == (["500.0", "ms"], ["4", "window"])
    assert float(rows["Prompt Throughput"].split()[0]) > 0
    assert FIRST in rows
    assert SECOND in rows


def test_json_has_vec_infs_keys_and_ours(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    found = json.loads(aegis("metrics", "abc234", "--json", "--watch", "0.1", "--once").out)
    assert list(found)[:3] == ["model_name", "metrics", "timestamp"]
    assert (found["model_name"], found["job_id"]) == ("org/m", HANDLE)
    metrics = found["metrics"]
    assert metrics["requests_running"] == 6
    assert metrics["total_prompt_tokens"] == 2070
    assert metrics["request_latency_count"] == metrics["successful_requests_total"] == 7
    assert metrics["avg_request_latency"] == 0.5
    assert metrics["prompt_tokens_per_sec"] == pytest.approx(2 * metrics["generation_tokens_per_sec"])
    assert found["latencies"]["request_latency"]["window"]["count"] == 4
    assert [each["instance"] for each in found["instances"]] == [FIRST, SECOND]


def test_one_server_alone(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    found = json.loads(
        aegis("metrics", HANDLE, "--json", "--watch", "0.1", "--once", "--instance", FIRST).out
    )
    assert found["metrics"]["requests_running"] == 3
    assert [each["instance"] for each in found["instances"]] == [FIRST]


def test_a_server_that_does_not_exist(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    outcome = aegis("metrics", HANDLE, "--instance", "m-7")
    assert outcome.code == 4
    assert "has no instance `m-7`" in outcome.err
    assert "did you mean `m-" in outcome.err


@pytest.mark.parametrize("text", ["nothing", "", "1; touch X", "$(touch X)", "-rf", "a\nb", "local://x/../y"])
def test_an_unknown_job_is_exit_4(aegis: Callable[..., Outcome], fleet: Fleet, text: str) -> None:
    outcome = aegis("metrics", "--", text)
    assert outcome.code == 4
    assert outcome.out == ""
    assert "there is no job" in outcome.err


def test_only_healthy_servers_are_asked(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.states[SECOND] = "starting"
    found = json.loads(aegis("metrics", HANDLE, "--json", "--watch", "0.1", "--once").out)
    assert [each["instance"] for each in found["instances"]] == [FIRST]


def test_a_job_that_is_not_ready_says_so(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.states = dict.fromkeys(fleet.states, "starting")
    outcome = aegis("metrics", HANDLE)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{HANDLE} is LAUNCHING" in outcome.err
    outcome = aegis("metrics", HANDLE, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["metrics"] == "Server not ready"


def test_a_server_that_failed_says_why(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.states[SECOND] = "failed"
    outcome = aegis("metrics", HANDLE, "--instance", SECOND)
    assert outcome.code == 1
    assert f"{SECOND} is failed: out of memory" in outcome.err


def test_a_job_that_waits_says_so_in_vec_infs_words(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.note(state="PENDING", registry_url=None, ready=None)
    outcome = aegis("metrics", HANDLE, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["metrics"] == "Pending resources for server initialization"


def test_a_job_that_has_ended_says_why(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.note(state="FAILED", reason="killed at its walltime of 01:00:00", ended=time.time())
    outcome = aegis("metrics", HANDLE)
    assert outcome.code == 1
    assert f"{HANDLE} is FAILED: killed at its walltime of 01:00:00" in outcome.err


def test_servers_without_metrics_are_told(aegis: Callable[..., Outcome], fleet: Fleet) -> None:
    fleet.broken = True
    outcome = aegis("metrics", HANDLE, "--json")
    assert outcome.code == 1
    said = json.loads(outcome.out)["metrics"]
    assert said == (
        "Metrics request failed, `metrics` endpoint might not be ready yet: it answers with HTTP 500"
    )


def test_watching_prints_a_json_line_per_look_until_the_job_ends(
    aegis: Callable[..., Outcome], fleet: Fleet
) -> None:
    def end() -> None:
        while fleet.looks < 8:
            time.sleep(0.01)
        fleet.states = dict.fromkeys(fleet.states, "stopped")

    thread = threading.Thread(target=end)
    thread.start()
    outcome = aegis("metrics", HANDLE, "--json", "--watch", "0.1")
    thread.join()
    *looks, last = map(json.loads, outcome.out.splitlines())
    assert len(looks) >= 2
    assert all(look["metrics"]["requests_per_sec"] > 0 for look in looks)
    assert (outcome.code, last["metrics"]) == (1, "Server not ready")


def test_ctrl_c_is_how_watching_ends(
    aegis: Callable[..., Outcome], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = iter([None])

    def sleep(seconds: float) -> None:
        if next(pauses, "interrupted"):
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    outcome = aegis("metrics", HANDLE, "--json", "--watch", "0.1")
    assert (outcome.code, outcome.err, len(outcome.out.splitlines())) == (0, "", 1)


def test_a_wrong_number_of_seconds_is_exit_2(aegis: Callable[..., Outcome]) -> None:
    assert aegis("metrics", "x", "--watch", "0").code == 2
