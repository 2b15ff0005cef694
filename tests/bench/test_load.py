"""Loads against servers that do as they should, and against some that do not."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import TYPE_CHECKING, Any

import pytest

from aegis.api.targets import Target
from aegis.bench.generator import Generator, worst
from aegis.bench.load import Load, Outcome
from aegis.bench.loop import PAUSE
from aegis.bench.prompts import Lengths, Prompt, Tokens, random_prompts
from aegis.bench.work import Work, arrivals
from tests.bench.conftest import Sim, scripted, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.lab

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
TOKEN = b'data: {"choices":[{"index":0,"text":" x"}]}\n\n'
EARLY = PAUSE / 2  # an event's time, at most: it lies between two looks at the sockets
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def whole(*events: bytes) -> bytes:
    body = b"".join(events)
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


GOOD = whole(TOKEN, TOKEN, USAGE, DONE)


def work(target: Target, count: int = 1, **options: Any) -> Work:
    prompts = random_prompts(count, Lengths(input=20, output=4), Tokens())
    closed = {} if "arrivals" in options else {"concurrency": 1}
    return Work(target=target, model="m", prompts=prompts, **(closed | options))


def load(target: Target, count: int = 1, *, api_key: str | None = None, **options: Any) -> Outcome:
    return Load([work(target, count, **options)], api_key).run()[0][0]


def answered(*answers: bytes, count: int = 1, closing: bool = False, **options: Any) -> Outcome:
    """What a load notes of a server that gives these answers, one after the other; an empty one closes."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(number, len(answers) - 1)])
        if closing or not answers[min(number, len(answers) - 1)]:
            raise ConnectionError

    async def measured() -> Outcome:
        async with scripted(answer) as target:
            return (await asyncio.to_thread(Load([work(target, count, **options)]).run))[0][0]

    return asyncio.run(measured())


@pytest.mark.parametrize("chat", [False, True])
def test_a_closed_loop_keeps_so_many_on_their_way(sim: Callable[..., Sim], chat: bool) -> None:
    server = sim("--ttft-ms", "30", "--itl-ms", "10")
    found = load(target_of(server), 12, concurrency=4, chat=chat)
    records = found.records
    assert records.errors == ("",) * 12
    assert sorted(records.prompt) == list(range(12))
    assert set(records.output_tokens) == {4}
    assert set(records.gaps) == {3 + chat}  # the event of the role counts, as with vLLM
    assert all(records.input_tokens >= 20)
    assert min(records.ttft) >= 0.03 - EARLY
    assert min(records.latency) >= 0.06 - EARLY
    ends = sorted(records.start + records.latency)
    for row, start in enumerate(sorted(records.start)):
        assert sum(end <= start for end in ends) >= row - 3  # 4 at once


def test_an_open_loop_does_not_wait_for_slow_answers(sim: Callable[..., Sim]) -> None:
    server = sim("--ttft-ms", "1000", "--max-num-seqs", "2")
    found, generator = Load([work(target_of(server), 8, arrivals=arrivals(8, 40.0, math.inf))]).run()
    starts = sorted(found[0].records.start)
    assert starts[-1] - starts[0] == pytest.approx(7 / 40, abs=0.15)
    assert found[0].records.errors == ("",) * 8
    assert generator.arrivals_late_p99_ms < 1000


def test_times_agree_with_the_server(sim: Callable[..., Sim]) -> None:
    server = sim("--ttft-ms", "40", "--itl-ms", "8")
    records = load(target_of(server), 4, concurrency=2).records
    told = server.metric("time_to_first_token_seconds_sum") / 4
    assert told <= records.ttft.mean() < told + 0.3
    told = server.metric("inter_token_latency_seconds_sum") / 12
    assert records.itl.mean() == pytest.approx(told, abs=0.02)  # benchmarks/loadgen.py is exact


def test_the_key_is_presented(sim: Callable[..., Sim], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    target = target_of(sim())
    assert load(target, api_key="secret").records.errors == ("",)
    assert load(target).records.errors[0].startswith("HTTP 401: ")


def test_several_servers_at_once(sim: Callable[..., Sim]) -> None:
    servers = [sim(), sim()]
    works = [work(target_of(server), 3) for server in servers]
    outcomes, _ = Load(works).run()
    assert [outcome.records.errors for outcome in outcomes] == [("",) * 3] * 2
    assert [server.metric("request_success_total") for server in servers] == [3, 3]


def test_an_unknown_model_fails_with_its_reason(sim: Callable[..., Sim]) -> None:
    target = target_of(sim(model="other"))
    assert load(target).records.errors == ("HTTP 404: The model `m` does not exist.",)


def test_errors_and_cuts_of_a_server(sim: Callable[..., Sim]) -> None:
    assert load(target_of(sim("--error-rate", "1"))).records.errors == ("HTTP 500: simulated error",)
    assert load(target_of(sim("--reset-rate", "1"))).records.errors[0].startswith("the connection was cut")


def test_a_server_that_hangs_is_given_up(sim: Callable[..., Sim]) -> None:
    found = load(target_of(sim("--hang-after", "0")), seconds=0.2)
    assert found.records.errors == ("no whole answer within 0.2 s",)


def test_nobody_listens() -> None:
    async def measured() -> Outcome:
        async with scripted(lambda *_: asyncio.sleep(0)) as target:
            pass
        return (await asyncio.to_thread(Load([work(target)]).run))[0][0]

    (error,) = asyncio.run(measured()).records.errors
    assert "does not answer" in error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (whole(DONE), "the answer holds no event with a choice"),
        (whole(USAGE, DONE), "the answer holds no event with a choice"),
        (whole(TOKEN, b'data: {"error":{"message":"the engine died"}}\n\n', DONE), "the engine died"),
        (whole(TOKEN, b"data: nonsense\n\n"), "an event that is no JSON: b'nonsense'"),
        (b"SSH-2.0\r\n\r\n", "not HTTP: b'SSH-2.0'"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nno\nway ", "HTTP 503: no way"),
        (b'HTTP/1.1 400 No\r\nContent-Length: 17\r\n\r\n{"detail": "why"}', "HTTP 400: why"),
    ],
)
def test_what_is_no_good_answer(answer: bytes, error: str) -> None:
    assert answered(answer, GOOD, count=2).records.errors == (error, "")


def test_a_prompt_longer_than_any_buffer(sim: Callable[..., Sim]) -> None:
    server = sim("--max-model-len", "3000000", "--kv-cache-tokens", "4000000")
    long = Work(
        target=target_of(server), model="m", prompts=(Prompt("a " * 2_000_000, 2),) * 2, concurrency=1
    )
    records = Load([long]).run()[0][0].records
    assert (records.errors, list(records.output_tokens)) == (("", ""), [2, 2])


def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `localhost`, which may mean ::1 first while the server listens on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = (socket.AF_INET, closed.getsockname())

    async def answer(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)

    async def measured() -> Outcome:
        async with scripted(answer) as target:
            there = (socket.AF_INET, (target.host, target.port))
            monkeypatch.setattr("aegis.bench.load.resolve", lambda _: (refused, there))
            return (await asyncio.to_thread(Load([work(target)]).run))[0][0]

    assert asyncio.run(measured()).records.errors == ("",)


def test_a_name_that_means_nothing() -> None:
    errors = load(Target("no such host", 1, ("m",)), 2).records.errors
    assert errors == ("no such host:1 does not answer: its name is not known",) * 2


def test_a_server_that_lets_nobody_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis.bench.connection.CONNECT_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        host, port = full.getsockname()
        target = Target(host, port, ("m",))  # its queue is full
        errors = load(target).records.errors
    assert errors == (f"{target.address} does not let us connect within 0.2 s",)


def test_an_answer_cut_short() -> None:
    assert answered(GOOD[:-4], closing=True).records.errors == ("the connection was cut",)


def test_counts_come_from_the_usage() -> None:
    records = answered(GOOD).records
    assert (records.input_tokens[0], records.output_tokens[0], records.gaps[0]) == (7, 2, 1)


def test_without_usage_events_are_counted() -> None:
    records = answered(whole(TOKEN, TOKEN, TOKEN, DONE)).records
    assert (records.input_tokens[0], records.output_tokens[0]) == (0, 3)


def test_an_answer_may_end_with_its_connection() -> None:
    records = answered(HEAD + b"\r\n" + TOKEN + USAGE + DONE, closing=True).records
    assert (records.errors, records.output_tokens[0]) == (("",), 2)


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure() -> None:
    """The second request meets a server that closes without a word, as at the end of its keep-alive."""
    records = answered(GOOD, b"", GOOD, count=2).records
    assert records.errors == ("", "")


def test_a_server_that_closes_every_new_connection_fails() -> None:
    assert answered(b"").records.errors == ("the connection was cut",)


def test_options_of_the_body_and_the_prompt() -> None:
    prompt = Prompt('"quoted"\n$(x)', 5)
    body = Work(
        target=Target("h", 1, ("m",)),
        model="a b;c",
        prompts=(prompt,),
        concurrency=1,
        options={"temperature": 0},
    ).body(0)
    assert body["prompt"] == prompt.text
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("a b;c", 5, 0)


def test_the_generator_says_when_it_was_the_bottleneck() -> None:
    assert Generator(cpu=0.5, loop_late_p99_ms=2.0).problem() is None
    assert "busy 95%" in (Generator(cpu=0.95).problem() or "")
    assert "events 50 ms late" in (Generator(loop_late_p99_ms=50.0).problem() or "")
    assert "left 50 ms late" in (Generator(arrivals_late_p99_ms=50.0).problem() or "")
    both = worst([Generator(cpu=0.2, loop_late_p99_ms=9.0), Generator(cpu=0.9)])
    assert (both.processes, both.cpu, both.loop_late_p99_ms) == (2, 0.9, 9.0)
