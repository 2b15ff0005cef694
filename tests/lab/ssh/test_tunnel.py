"""`aegis tunnel` through a real sshd, to a server that plays the registry and the engine of a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import SiteError
from aegis.schedulers.ssh import connect
from tests.lab.conftest import request, wait_until
from tests.lab.ssh.sshd import Sshd
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]
JOB = "local://abc"


class Engine:
    """A server on this machine, and what a registry says of it."""

    def __init__(self) -> None:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = engine.services if self.path == "/services" else {"path": self.path}
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.services: list[dict[str, Any]] = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, name: str, host: str = "127.0.0.1", node: str = "local") -> None:
        self.services.append(
            {
                "service_id": name,
                "host": host,
                "port": self.port,
                "service_type": "sim",
                "status": "healthy",
                "last_seen": 0.0,
                "metadata": {"position": len(self.services), "node": node},
            }
        )


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def job(sshd: Sshd, engine: Engine) -> Callable[..., None]:
    """Leave a job in the account's index over there."""

    def leave(handle: str = JOB, **keys: Any) -> None:
        stem = f"m.{handle.partition('://')[2]}"
        run_dir = sshd.home / "logs" / "m" / stem
        link = sshd.home / ".local" / "state" / "aegis" / "jobs" / handle.replace("://", ":")
        for folder in (run_dir, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(run_dir)
        manifest = {
            "job": handle,
            "name": "m",
            "models": ["m"],
            "run_dir": str(run_dir),
            "state": "LAUNCHING",
            "host": subprocess.run(
                ["uname", "-n"], capture_output=True, text=True, check=True
            ).stdout.strip(),
            "registry_url": f"http://127.0.0.1:{engine.port}",
            **keys,
        }
        (run_dir / f"{stem}.json").write_text(json.dumps(manifest))

    return leave


class Tunnel:
    """A running `aegis tunnel`."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.out, self.err = folder / "tunnel.out", folder / "tunnel.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aegis", "tunnel", *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """HOST:PORT at this end, once it is open."""

        def opened() -> str:
            assert self.process.poll() is None, self.err.read_text()
            return self.out.read_text()

        return str(wait_until(opened, "it is open", 20)).strip().removeprefix("http://").removesuffix("/v1")

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        return code, self.err.read_text()


@pytest.fixture
def tunnel(sshd: Sshd, tmp_path: Path) -> Iterator[Callable[..., Tunnel]]:
    made = []

    def start(*args: str) -> Tunnel:
        made.append(Tunnel(tmp_path, *args, "--remote", sshd.target))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


def test_a_request_goes_through(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    engine.serve("m-0")
    job()
    opened = tunnel(JOB)
    address = opened.address
    assert request(address, "GET", "/v1/models") == (200, '{"path": "/v1/models"}')
    assert address != f"127.0.0.1:{engine.port}", "its own number is taken on this machine"
    code, err = opened.end()
    assert (code, opened.out.read_text()) == (0, f"http://{address}/v1\n")
    assert "m-0 of local://abc is open on port" in err
    assert request(address, "GET", "/")[0] == 0
    assert sshd.logins == 1


def test_a_cut_connection_is_opened_again_on_the_same_port(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    engine.serve("m-0")
    job()
    port = free_port()
    opened = tunnel("abc", "--port", str(port))
    assert opened.address == f"127.0.0.1:{port}"
    assert sshd.cut() == 1
    wait_until(lambda: "open on port" in opened.err.read_text().partition("was cut; opening it again")[2])
    assert request(opened.address, "GET", "/health")[0] == 200
    assert opened.end(signal.SIGTERM)[0] == 0
    assert opened.out.read_text().count("http") == 1
    assert sshd.logins == 2


def test_an_instance_is_named(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    for name in ("m-0", "m-1"):
        engine.serve(name)
    job()
    code, err = tunnel(JOB, "m-7").end(0)
    assert code == 4
    assert "job local://abc has no healthy server `m-7`" in err
    opened = tunnel(JOB, "m-1")
    assert opened.address
    assert "m-1 of local://abc" in opened.end()[1]


def test_where_the_registry_is_silent_the_endpoints_file_tells(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    (sshd.home / "endpoints.txt").write_text(f"127.0.0.1:{engine.port}\n")
    job(registry_url="http://127.0.0.1:1", endpoints_file=str(sshd.home / "endpoints.txt"))
    assert request(tunnel(JOB).address, "GET", "/x") == (200, '{"path": "/x"}')


def test_a_job_without_servers(sshd: Sshd, job: Callable[..., None], tunnel: Callable[..., Tunnel]) -> None:
    sshd.start()
    job()
    job("local://ended", state="FAILED", reason="no GPU")
    code, err = tunnel(JOB).end(0)
    assert code == 1
    assert "job local://abc has no healthy server" in err
    assert "hint: `aegis wait local://abc" in err
    code, err = tunnel("ended").end(0)
    assert (code, "it is FAILED: no GPU" in err) == (1, True)


def test_the_command_is_printed_instead(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    engine.serve("m-0", "node1.site", "node1")
    job("pbs://1.server")
    printed = tunnel("pbs://1.server", "--print", "--port", "9000")
    code, err = printed.end(0)
    assert code == 0
    assert printed.out.read_text() == f"ssh -N -L 9000:node1.site:{engine.port} alice@cluster\n"
    assert f"ssh -N -J alice@cluster -L 9000:localhost:{engine.port} alice@node1\n" in err
    assert "http://127.0.0.1:9000/v1" in err


@pytest.fixture
def node(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd of a compute node, which the laptop knows as node1, and the login node does not lead to."""
    folder = sshd.folder / "node"
    folder.mkdir()
    made = Sshd(folder, host="127.0.0.2", port=free_port())
    config = (folder / "ssh_config").read_text().replace("Host cluster", "Host node1")
    config = config.replace(f"{folder}/known_hosts", f"{sshd.folder}/known_hosts")
    with (sshd.folder / "ssh_config").open("a") as stream:
        stream.write(config)
    with (sshd.folder / "known_hosts").open("a") as stream:
        stream.write((folder / "known_hosts").read_text())
    accounts = (folder / "codes").read_text()
    (sshd.folder / "codes").write_text(f"{sshd.code()}\n{accounts}")
    made.start()
    yield made
    made.stop()


def test_through_the_node_where_the_login_node_does_not_lead_there(
    sshd: Sshd, node: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    engine.serve("m-0", "node1", "node1")
    job("pbs://1.server")
    opened = tunnel("pbs://1.server")
    assert request(opened.address, "GET", "/x") == (200, '{"path": "/x"}')
    code, err = opened.end()
    assert code == 0
    assert f"alice@cluster does not lead to node1:{engine.port}; trying through node1" in err
    assert (sshd.logins, node.logins) == (1, 1)


def test_no_way_at_all(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.start()
    engine.serve("m-0", "node9.invalid", "node9.invalid")
    job("pbs://1.server")
    code, err = tunnel("pbs://1.server").end(0)
    assert code == 3
    assert f"error: no way leads to node9.invalid:{engine.port}" in err
    assert "cannot log in to alice@node9.invalid" in err
    assert "hint: may you log in to node9.invalid" in err
    assert "Traceback" not in err


def test_a_port_that_is_taken_and_a_host_that_is_none(sshd: Sshd, engine: Engine) -> None:
    sshd.start()
    with connect(sshd.target, print) as far:
        with (
            pytest.raises(SiteError, match=f"port {engine.port} of this machine"),
            far.forward("127.0.0.1", 80, engine.port),
        ):
            pass
        for host in ("", "a b", "-x", "a;b", "$(x)", "a/b"):
            with pytest.raises(SiteError, match="is no host"), far.forward(host, 80):
                pass
        with far.forward("127.0.0.1", engine.port) as (host, port):
            assert request(f"{host}:{port}", "GET", "/x")[0] == 200
        assert request(f"{host}:{port}", "GET", "/x")[0] == 0, "it is closed with its block"


def test_where_sshd_forwards_no_ports_sessions_carry_them(sshd: Sshd, engine: Engine) -> None:
    (sshd.home / ".bashrc").write_text("echo Welcome\n")
    sshd.extra = ["AllowTcpForwarding no"]
    sshd.start()
    with connect(sshd.target, print) as far:
        with far.forward("127.0.0.1", engine.port) as (host, port), ThreadPoolExecutor(12) as pool:
            paths = [f"/{number}" for number in range(24)]
            answers = list(pool.map(lambda path: request(f"{host}:{port}", "GET", path), paths))
            assert answers == [(200, json.dumps({"path": path})) for path in paths]
        assert request(f"{host}:{port}", "GET", "/x")[0] == 0, "it is closed with its block"
        with far.forward("127.0.0.1", free_port()) as (host, port):
            assert request(f"{host}:{port}", "GET", "/x")[0] == 0, "nobody is there"
        with (
            pytest.raises(SiteError, match=f"port {engine.port} of this machine"),
            far.forward("127.0.0.1", engine.port, engine.port),
        ):
            pass
        assert far.run(["echo", "on"]).out == "on\n"
    assert sshd.logins == 1
    assert sshd.most_sessions <= 8


def test_a_tunnel_where_sshd_forwards_no_ports(
    sshd: Sshd, engine: Engine, job: Callable[..., None], tunnel: Callable[..., Tunnel]
) -> None:
    sshd.extra = ["AllowTcpForwarding no"]
    sshd.start()
    engine.serve("m-0")
    job()
    opened = tunnel(JOB)
    assert request(opened.address, "GET", "/v1/models") == (200, '{"path": "/v1/models"}')
    code, err = opened.end()
    assert (code, "m-0 of local://abc is open" in err) == (0, True)
