"""`aegis gateway --remote`: a registry and servers that only the machine behind ssh reaches, with a one-time code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from aegis.registry.store import Store
from tests.lab.conftest import request, wait_until
from tests.registry.conftest import Clock, Site, push, report, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.ssh.sshd import Sshd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def registry() -> Iterator[Site]:
    clock = Clock()
    with running(Store(wall=clock.wall, monotonic=clock.monotonic), clock) as site:
        yield site


@pytest.fixture
def engine() -> Iterator[int]:
    """The port of a server that answers who asked it for what."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"path": self.path}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def job(sshd: Sshd, registry: Site, engine: int) -> None:
    """A job of the service `chat` in the account over there."""
    run_dir = sshd.home / "logs" / "m" / "m.7"
    link = sshd.home / ".local" / "state" / "aegis" / "jobs" / "pbs:7.server"
    for folder in (run_dir, link.parent):
        folder.mkdir(parents=True, exist_ok=True)
    link.symlink_to(run_dir)
    manifest = {
        "job": "pbs://7.server",
        "name": "m",
        "models": ["m"],
        "run_dir": str(run_dir),
        "state": "READY",
        "service": "chat",
        "registry_url": registry.url,
    }
    (run_dir / "m.7.json").write_text(json.dumps(manifest))
    registry.client().push(push("n", report("m-0", model="m", host="127.0.0.1", port=engine)))


@pytest.fixture
def gateway(sshd: Sshd, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "aegis", "gateway", *args, "--remote", sshd.target]
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            started.append(
                subprocess.Popen(
                    [*command, "--port", "0"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def address(process: subprocess.Popen[bytes], tmp_path: Path) -> str:
    def printed() -> str:
        assert process.poll() is None, (tmp_path / "err").read_text()
        return (tmp_path / "out").read_text()

    text = str(wait_until(printed, "it listens")).strip()
    assert text.startswith("http://127.0.0.1:"), "nobody else uses this login"
    return text.removeprefix("http://").removesuffix("/v1")


def is_answered(at: str) -> bool:
    return request(at, "POST", "/v1/chat/completions", ASKED)[0] == 200


@pytest.mark.usefixtures("job")
def test_a_service_behind_ssh_that_is_cut_and_comes_back(
    sshd: Sshd, registry: Site, gateway: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    sshd.start()
    process = gateway("chat")
    at = address(process, tmp_path)
    assert request(at, "POST", "/v1/chat/completions", ASKED) == (200, '{"path": "/v1/chat/completions"}')
    assert sshd.logins == 1
    assert sshd.cut() == 1
    wait_until(lambda: sshd.logins == 2, "it logs in again")
    wait_until(lambda: is_answered(at), "it answers again")
    registry.client().push(push("n"))
    wait_until(lambda: request(at, "GET", "/v1/models") == (200, '{"object":"list","data":[]}'), "it is gone")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    err = (tmp_path / "err").read_text()
    assert "1 server of m" in err
    assert err.count("was cut; opening it again") == 1
    assert "Traceback" not in err
    assert len(sshd.prompts) == 2


@pytest.mark.usefixtures("job")
def test_a_registry_behind_ssh_by_its_address(
    sshd: Sshd, registry: Site, gateway: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    sshd.start()
    process = gateway("--registry-host", "127.0.0.1", "--registry-port", str(registry.port))
    assert is_answered(address(process, tmp_path))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert sshd.logins == 1
