"""Commands that open a way by hand, and which way a server needs."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from aegis.fleet.tunnel import Server, answers, is_elsewhere, near_port, ssh_command

OPEN = Server("m-0", "node1", 8000, "node1")


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("login", ["user@login", "login"])
def test_the_command(login: str, through: bool) -> None:
    command = " ".join(ssh_command(OPEN, login, 9000, through=through))
    beyond = "user@node1" if "@" in login else "node1"
    assert command == (
        f"ssh -N -J {login} -L 9000:localhost:8000 {beyond}"
        if through
        else f"ssh -N -L 9000:node1:8000 {login}"
    )


def test_an_address_of_six_bytes_is_bracketed() -> None:
    server = Server("m-0", "fd00::1", 8000, "node1")
    assert ssh_command(server, "login", 1, through=False)[3] == "1:[fd00::1]:8000"


@pytest.mark.parametrize(
    ("host", "node", "elsewhere"),
    [
        ("127.0.0.1", "login1.site", False),
        ("127.0.0.1", "node1", True),
        ("localhost", "node1", True),
        ("::1", "node1", True),
        ("127.0.0.2", "127.0.0.2", False),
        ("10.0.0.1", "node1", False),
        ("node1", "node1", False),
    ],
)
def test_who_reaches_a_server(host: str, node: str, elsewhere: bool) -> None:
    assert is_elsewhere(Server("m-0", host, 8000, node), "login1") is elsewhere


def test_a_port_that_is_taken_gives_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert near_port(port) != port
    assert near_port(port) == port


def test_who_hangs_up_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert not answers(port)
        thread.join()
    assert not answers(port), "nobody is there at all"
