"""The life of a simulated server: start-up, faults, several nodes, the end."""

from __future__ import annotations

import http.client
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

from .conftest import CHAT, Sim, chat, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., Sim]

BROKEN = (http.client.HTTPException, OSError)
SHORT = 0.3  # seconds in which an answer would have come


@pytest.fixture
def port() -> int:
    return free_port()


def test_nothing_listens_before_start_up_is_over(sim: Start, port: int) -> None:
    server = sim("--startup-seconds", "0.5", "--port", str(port))
    refused = 0
    while "pid" not in server.log:
        with socket.socket() as sock:
            refused += sock.connect_ex(("127.0.0.1", port)) != 0
    assert refused
    assert server.ask("/health").status == 200
    assert server.ask("/ping").status == server.ask("/ping", b"").status == 200


def test_term_during_start_up_ends_it(sim: Start) -> None:
    server = sim("--startup-seconds", "600", "--nnodes", "1", "--fail-start", "never")
    wait_until(lambda: server.process.poll() is None and _catches_term(server.process.pid))
    assert server.end() == 0
    assert not server.log


def _catches_term(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - as short as it gets
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(caught & 1 << signal.SIGTERM - 1)


def test_a_start_that_fails_says_why(sim: Start) -> None:
    server = sim("--fail-start", "torch.OutOfMemoryError: 'x'; $(y)")
    assert server.exit_code() == 1
    assert server.log == "torch.OutOfMemoryError: 'x'; $(y)\n"


def test_a_port_in_use_is_told_as_vllm_does(sim: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = sim("--port", str(taken.getsockname()[1]))
        assert server.exit_code() == 1
    assert server.log == "OSError: [Errno 98] Address already in use\n"


def test_two_that_bind_one_port_while_starting(sim: Start, port: int) -> None:
    servers = [sim("--startup-seconds", "0.5", "--port", str(port)) for _ in range(2)]
    wait_until(lambda: any(server.process.poll() is not None for server in servers))
    (loser,) = [server for server in servers if server.process.poll() is not None]
    (winner,) = [server for server in servers if server is not loser]
    assert loser.exit_code() == 1
    assert "Address already in use" in loser.log
    assert winner.ask("/health").status == 200


def test_flags_of_vllm_are_accepted(sim: Start) -> None:
    server = sim(
        *("-tp", "4", "--enforce-eager", "--max_model_len", "99", "-dpn", "1", "--no-such", '{"a": 1}'),
        *("--dtype", "float16", "--trust-remote-code", "--distributed-executor-backend", "ray"),
    )
    assert server.ask("/v1/models").json["data"][0]["max_model_len"] == 99
    assert server.log.startswith("warning: ignored arguments: '-tp' '4' '-dpn' '1' '--no-such'")


@pytest.mark.parametrize("wrong", [("--node-rank", "1"), ("--hang-health-after", "x"), ("--error-rate", "2")])
def test_wrong_flags_are_refused(sim: Start, wrong: tuple[str, ...]) -> None:
    server = sim(*wrong)
    assert server.exit_code() == 2
    assert "Error:" in server.log


def test_an_unreadable_key_file_is_refused(sim: Start, tmp_path: Path) -> None:
    server = sim("--api-key-file", str(tmp_path / "none"))
    assert server.exit_code() == 2
    assert "No such file" in server.log


def test_crash_after_the_requests(sim: Start) -> None:
    server = sim("--crash-after", "1")
    assert server.ask(CHAT, chat()).status == 200
    with pytest.raises(BROKEN):
        server.ask(CHAT, chat())
    assert server.exit_code() == 17


def test_crash_after_seconds(sim: Start) -> None:
    assert sim("--crash-after-seconds", "0.2").exit_code() == 17


@pytest.mark.parametrize("stream", [True, False])
def test_hang_is_the_wedged_case(sim: Start, *, stream: bool) -> None:
    server = sim("--hang-after", "0")
    stuck = server.send(CHAT, chat(4, stream=stream))
    wait_until(server.running(1))
    assert server.ask("/health").status == 200
    assert server.metric("generation_tokens_total") == 0
    assert server.ask("/sim/fault", {"hang": False}).json["hang"] is False
    assert stuck.getresponse().read()
    assert server.metric("generation_tokens_total") == 4
    stuck.close()


def test_a_hang_stops_requests_on_their_way(sim: Start) -> None:
    server = sim("--itl-ms", "5")
    going = server.send(CHAT, chat(10_000, ignore_eos=True, stream=True))
    wait_until(lambda: server.metric("generation_tokens_total") > 1)
    server.ask("/sim/fault", {"hang": True})
    made = server.metric("generation_tokens_total")
    with pytest.raises(TimeoutError):
        server.ask(CHAT, chat(), timeout=SHORT)
    assert server.metric("generation_tokens_total") == made
    going.close()
    wait_until(server.running(0))


def test_a_client_that_has_left_before_it_is_heard_is_no_error(sim: Start) -> None:
    server = sim()
    assert server.ask("/health").status == 200
    # stopped meanwhile, it finds the request and the end of the connection together
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(4):
        server.send(CHAT, chat(stream=True)).close()
    server.process.send_signal(signal.SIGCONT)
    assert server.ask(CHAT, chat()).status == 200
    wait_until(server.running(0))
    assert "Traceback" not in server.log


@pytest.mark.parametrize("after", ["1", "0s"])
def test_hang_health_answers_nothing(sim: Start, after: str) -> None:
    server = sim("--hang-health-after", after)
    if after == "1":
        assert server.ask("/health").status == server.ask(CHAT, chat()).status == 200
    for path in ("/health", "/metrics", "/v1/models"):
        with pytest.raises(TimeoutError):
            server.ask(path, timeout=SHORT)
    server.ask("/sim/fault", {"hang_health": False})
    assert server.ask("/health").status == 200


def test_a_share_of_requests_fails_the_same_way_each_time(sim: Start) -> None:
    def statuses() -> list[int]:
        server = sim("--error-rate", "0.5", "--seed", "3")
        return [server.ask(CHAT, chat()).status for _ in range(20)]

    first = statuses()
    assert set(first) == {200, 500}
    assert statuses() == first


def test_resets_break_off_half_way(sim: Start) -> None:
    server = sim("--reset-rate", "1")
    with pytest.raises(BROKEN):
        server.ask(CHAT, chat())
    connection = server.send(CHAT, chat(8, stream=True))
    response = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as broken:
        response.read()
    assert b"simulated" in broken.value.partial
    assert b"[DONE]" not in broken.value.partial
    connection.close()
    wait_until(server.running(0))
    server.ask("/sim/fault", {"reset_rate": 0})
    assert server.ask(CHAT, chat()).status == 200


def test_injected_errors_and_crash(sim: Start) -> None:
    server = sim()
    server.ask("/sim/fault", {"error_rate": 1})
    answer = server.ask(CHAT, chat())
    assert (answer.status, answer.json["error"]["type"]) == (500, "InternalServerError")
    assert server.metric("request_success_total", finished_reason="error") == 1
    assert server.ask("/sim/fault", {"crash": True}).status == 200
    assert server.exit_code() == 17


def test_open_requests_may_end_after_term(sim: Start) -> None:
    server = sim("--itl-ms", "100", "--grace", "20")
    going = server.send(CHAT, chat(8))
    wait_until(server.running(1))
    server.process.terminate()
    assert going.getresponse().status == 200
    going.close()
    assert server.exit_code() == 0


def test_what_outlives_the_grace_is_cut(sim: Start) -> None:
    server = sim("--hang-after", "0", "--grace", "0.1")
    going = server.send(CHAT, chat())
    wait_until(server.running(1))
    assert server.end() == 0
    with pytest.raises(BROKEN):
        going.getresponse()
    going.close()


def test_the_access_log_is_off_unless_asked_for(sim: Start) -> None:
    for flags, lines in (((), 1), (("--access-log",), 2)):
        server = sim(*flags)
        server.ask("/health")
        assert server.end() == 0
        assert len(server.log.splitlines()) == lines


def ranks(sim: Start, port: int, *flags: str) -> tuple[Sim, Sim]:
    """Start rank 1, then rank 0, of two."""
    common = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), *flags)
    follower = sim(*common, "--node-rank", "1", "--headless")
    return sim(*common, "-r", "0"), follower


def test_rank_0_is_ready_when_all_are_there(sim: Start, port: int) -> None:
    alone = sim("--nnodes", "2", "--master-port", str(port))
    wait_until(lambda: _listens(port))
    assert not alone.log
    follower = sim("--nnodes", "2", "--node-rank", "1", "--master-port", str(port), "--headless")
    assert alone.ask("/health").status == 200
    wait_until(lambda: "rank 1 of 2" in follower.log)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_rank_ends_rank_0(sim: Start, port: int, number: int) -> None:
    head, follower = ranks(sim, port)
    assert head.ask(CHAT, chat()).status == 200
    follower.process.send_signal(number)
    assert follower.exit_code() == (0 if number == signal.SIGTERM else -number)
    assert head.exit_code() == 1
    assert "aegis sim: rank 1 is gone" in head.log


def test_without_rank_0_the_others_end(sim: Start, port: int) -> None:
    head, follower = ranks(sim, port)
    assert head.ask("/health").status == 200
    head.process.kill()
    assert follower.exit_code() == 1
    assert f"aegis sim: rank 0 at 127.0.0.1:{port} is gone" in follower.log


def test_a_rank_that_is_there_already_is_refused(sim: Start, port: int) -> None:
    head, _ = ranks(sim, port)
    assert head.ask("/health").status == 200
    again = sim("--nnodes", "2", "--node-rank", "1", "--master-port", str(port))
    assert again.exit_code() == 1
    assert "refuses rank 1 of 2" in again.log
    assert head.ask("/health").status == 200


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_do_not_meet_give_up(sim: Start, port: int, rank: str) -> None:
    flags = ("--nnodes", "2", "--node-rank", rank, "--master-port", str(port), "--join-timeout", "0.2")
    server = sim(*flags)
    assert server.exit_code() == 1
    assert "within 0.2 s" in server.log
