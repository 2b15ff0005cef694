"""What the simulated server answers and counts: real processes, compared with recordings of vLLM."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import CHAT, Sim, chat, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Sim]

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm"
COMPLETIONS = "/v1/completions"


def keys(value: Any) -> Any:
    """Return the shape of a body: keys in order, values gone."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def recorded(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


def recorded_events() -> list[Any]:
    lines = (RECORDED / "chat_stream.txt").read_text().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def families(text: str) -> dict[str, tuple[str, set[str], list[str]]]:
    """Return type, label names and buckets of every metric of vLLM's."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("vllm:"):
            labels = {name for sample in family.samples for name in sample.labels}
            buckets = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
            found[family.name] = (family.type, labels, buckets)
    return found


def test_bodies_have_vllms_keys(sim: Start) -> None:
    server = sim()
    answer = server.ask(CHAT, chat())
    assert keys(answer.json) == keys(recorded("chat.json"))
    assert keys(server.ask("/v1/models").json) == keys(recorded("models.json"))
    stream = server.ask(CHAT, chat(8, stream=True, stream_options={"include_usage": True}))
    assert [keys(event) for event in stream.events] == [keys(event) for event in recorded_events()]
    assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"


def test_nothing_can_be_mistaken_for_a_model(sim: Start) -> None:
    server = sim()
    answer = server.ask(CHAT, chat(8))
    assert answer.headers["x-aegis-sim"] == "1"
    assert answer.json["system_fingerprint"].startswith("aegis-sim-")
    assert "simulated" in answer.json["choices"][0]["message"]["content"]
    assert server.ask("/v1/models").json["data"][0]["owned_by"] == "aegis-sim"
    assert server.ask("/version").json["version"].startswith("aegis-sim-")


def test_metrics_have_vllms_names_types_labels_and_buckets(sim: Start) -> None:
    server = sim("--max-model-len", "2048")
    server.ask(CHAT, chat())
    ours = families(server.ask("/metrics").body.decode())
    vllms = families((RECORDED / "metrics.txt").read_text())
    assert len([name for name in ours if not name.endswith("_created")]) == 16
    cache = ours.pop("vllm:cache_config_info"), vllms.pop("vllm:cache_config_info")
    assert cache[0][1] < cache[1][1]
    assert ours == {name: vllms[name] for name in ours}


def test_counts_move_with_the_requests(sim: Start) -> None:
    server = sim("--served-model-name", "a", "b")
    server.ask(CHAT, chat(3, model="b"))
    server.ask(COMPLETIONS, {"prompt": "one two", "max_tokens": 500, "n": 2})
    assert server.metric("prompt_tokens_total", model_name="a") == 4 + 2
    assert server.metric("generation_tokens_total") == 3 + 2 * 128
    assert server.metric("request_success_total", finished_reason="length") == 1
    assert server.metric("request_success_total", finished_reason="stop") == 2
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert server.metric(f"{name}_count") == 2
    assert server.metric("inter_token_latency_seconds_count") == 2 + 127
    assert server.metric("num_requests_running") == 0


def test_streams_and_plain_answers_say_the_same(sim: Start) -> None:
    server = sim()
    for body in ({"prompt": "x", "max_tokens": 7, "n": 2}, {"prompt": ["x", [1, 2]], "stop": "not"}):
        plain = server.ask(COMPLETIONS, body).json["choices"]
        events = server.ask(COMPLETIONS, body | {"stream": True}).events
        for choice in plain:
            mine = [
                event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]
            ]
            assert "".join(event["text"] for event in mine) == choice["text"]
            assert [event["finish_reason"] for event in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            assert mine[-1]["stop_reason"] == choice["stop_reason"]


def test_lengths_and_stops(sim: Start) -> None:
    server = sim("--output-tokens", "10")

    def ends(**more: Any) -> tuple[int, str, str | None]:
        answer = server.ask(CHAT, {"messages": [{"role": "user", "content": [{"text": "a"}]}], **more}).json
        choice = answer["choices"][0]
        return answer["usage"]["completion_tokens"], choice["finish_reason"], choice["stop_reason"]

    assert ends() == (10, "stop", None)
    assert ends(max_tokens=4) == (4, "length", None)
    assert ends(max_completion_tokens=3, max_tokens=4) == (3, "length", None)
    assert ends(max_tokens=20, ignore_eos=True) == (20, "length", None)
    assert ends(stop=["s of", "nowhere"]) == (3, "stop", "s of")


def test_usage_comes_with_every_token_where_asked_for(sim: Start) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = sim().ask(CHAT, chat(3, stream=True, stream_options=options)).events
    assert [event["usage"]["completion_tokens"] for event in events[1:]] == [1, 2, 3, 3]


def test_embeddings_and_tokens(sim: Start) -> None:
    server = sim()
    first = server.ask("/v1/embeddings", {"input": ["a", "b", "a"], "dimensions": 3}).json["data"]
    assert first[0]["embedding"] == first[2]["embedding"] != first[1]["embedding"]
    coded = server.ask("/v1/embeddings", {"input": "a", "encoding_format": "base64"}).json["data"]
    assert isinstance(coded[0]["embedding"], str)
    tokens = server.ask("/tokenize", {"prompt": "one two", "return_token_strs": True}).json
    assert (tokens["count"], tokens["token_strs"]) == (2, ["one", "two"])
    assert server.ask("/tokenize", {"messages": chat()["messages"]}).json["count"] == 4


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (CHAT, b"{", 400, "parsing"),
        (CHAT, b"\xff", 400, ""),
        (CHAT, {}, 400, "messages"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, chat(0), 400, "max_tokens"),
        (CHAT, chat(stop=3), 400, "stop"),
        (CHAT, chat(60), 400, "maximum context length is 50 tokens"),
        (CHAT, chat(model="x"), 404, "The model `x` does not exist."),
        (COMPLETIONS, {"prompt": []}, 400, "empty"),
        (COMPLETIONS, {"prompt": [1, "a"]}, 400, "mixes"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 40}, 400, "KV cache"),
        (COMPLETIONS, {"prompt": "a " * 60}, 400, "maximum context length"),
        ("/tokenize", {}, 400, "missing"),
        ("/v1/embeddings", {"input": {}}, 400, "input"),
        ("/sim/fault", {"hang": 1}, 400, "hang"),
        ("/sim/fault", {"error_rate": 2}, 400, "error_rate"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/v1/models", {}, 405, "Method Not Allowed"),
    ],
)
def test_errors_have_openais_shape(bounded: Sim, path: str, body: Any, status: int, message: str) -> None:
    answer = bounded.ask(path, body)
    assert answer.status == status
    assert list(answer.json["error"]) == ["message", "type", "param", "code"]
    assert answer.json["error"]["code"] == status
    assert message in answer.json["error"]["message"]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = Sim(tmp_path_factory.mktemp("sim"), "m", "--max-model-len", "50", "--kv-cache-tokens", "30")
    yield server
    server.process.kill()
    server.process.wait()


def test_keys_protect_v1_alone(sim: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("first\nsecond\n")
    monkeypatch.setenv("VLLM_API_KEY", "third")
    for server, key in ((sim("--api-key-file", str(tmp_path / "keys")), "second"), (sim(), "third")):
        assert server.ask("/health").status == server.ask("/metrics").status == 200
        assert server.ask("/v1/models").status == server.ask(CHAT, chat()).status == 401
        assert server.ask("/v1/models", Authorization=f"Bearer {key}").status == 200
        assert server.ask("/v1/models", Authorization="Bearer fourth").status == 401


def test_a_full_batch_makes_others_wait(sim: Start) -> None:
    server = sim("--max-num-seqs", "1", "--itl-ms", "5")
    first = server.send(CHAT, chat(10_000, ignore_eos=True, stream=True))
    wait_until(server.running(1))
    second = server.send(CHAT, chat(2))
    wait_until(lambda: server.metric("num_requests_waiting") == 1)
    assert server.metric("num_requests_running") == 1
    assert 0 < server.metric("kv_cache_usage_perc") < 1
    first.close()
    assert second.getresponse().status == 200
    assert server.metric("request_success_total", finished_reason="abort") == 1
    assert server.metric("kv_cache_usage_perc") == 0
    second.close()


def test_a_request_waits_for_its_kv_cache_and_may_leave_the_queue(sim: Start) -> None:
    server = sim("--kv-cache-tokens", "1000", "--itl-ms", "5")
    first = server.send(CHAT, chat(900, ignore_eos=True))
    wait_until(server.running(1))
    second = server.send(CHAT, chat(200, ignore_eos=True))
    wait_until(lambda: server.metric("num_requests_waiting") == 1)
    second.close()
    wait_until(lambda: server.metric("num_requests_waiting") == 0)
    first.close()
    wait_until(server.running(0))
    assert server.metric("request_success_total") == server.metric(
        "request_success_total", finished_reason="abort"
    )


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_stop_when_the_client_leaves(sim: Start, *, stream: bool) -> None:
    server = sim("--itl-ms", "5")
    connection = server.send(CHAT, chat(10_000, ignore_eos=True, stream=stream))
    wait_until(lambda: server.metric("generation_tokens_total") > 3)
    connection.close()
    wait_until(server.running(0))
    made = server.metric("generation_tokens_total")
    assert server.ask(CHAT, chat(1)).status == 200
    assert server.metric("generation_tokens_total") == made + 1 < 10_000


def test_first_token_and_the_others_take_their_time(sim: Start) -> None:
    server = sim("--ttft-ms", "100", "--itl-ms", "20", "--jitter", "0.1")
    server.ask(CHAT, chat(6))
    server.ask(CHAT, chat(6, stream=True))
    assert server.metric("time_to_first_token_seconds_sum") >= 2 * 0.09
    assert server.metric("e2e_request_latency_seconds_sum") >= 2 * (0.09 + 5 * 0.018)


def test_repeated_prefixes_are_hits(sim: Start) -> None:
    server = sim("--prefix-cache", "on")
    for _ in range(2):
        server.ask(COMPLETIONS, {"prompt": "word " * 40, "max_tokens": 1})
    assert server.metric("prefix_cache_queries_total") == 80
    assert server.metric("prefix_cache_hits_total") == 32


def test_hostile_names_are_names(sim: Start) -> None:
    name = 'a "b"\n$(touch x); `c` \\ é'
    server = sim(model=name)
    assert server.ask(CHAT, chat(model=name)).json["model"] == name
    assert server.metric("num_requests_running", model_name=name) == 0
    assert server.ask("/v1/models").json["data"][0]["id"] == name
    assert len(server.log.splitlines()) == 1


def test_broken_http_does_no_harm(sim: Start) -> None:
    server = sim()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"\x00\x01 nonsense\r\n\r\n")
        assert b" 400 " in raw.recv(1000)
    assert server.ask("/health").status == 200
