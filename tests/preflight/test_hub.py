"""The hub is asked only for what is not here, says what it knows, and gets a token only if it is the user's own hub."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.preflight import hub as hub_module
from aegis.preflight.hub import Answer, ask

from .conftest import LLAMA_70B, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Desk

GIB = 1024**3


class Server:
    """A hub on this machine: answers by path, and what it was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, tuple[int, Any, dict[str, str]]] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, token
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, model: str, status: int = 200, **info: Any) -> None:
        self.routes[f"/api/models/{model}"] = (status, info, {})

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers["Authorization"]))
                status, body, headers = server.routes.get(self.path, (404, {}, {}))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def online(desk: Desk, server: Server) -> Desk:
    desk.environ = {"HF_ENDPOINT": server.url, "HOME": str(desk.folder)}
    return desk


def test_an_open_model(server: Server, online: Desk) -> None:
    server.add("org/m", gated=False)
    assert online.told(model="org/m") == []
    assert server.asked == [("/api/models/org/m", None)]


@pytest.mark.parametrize("gated", ["manual", "auto", True])
def test_a_gated_model_without_a_token(server: Server, online: Desk, gated: object) -> None:
    server.add("org/m", gated=gated)
    assert online.told(model="org/m", instances=2) == [
        f"!--model: org/m is gated, and there is no token (ask for access at {server.url}/org/m and export HF_TOKEN)"
    ]


def test_a_token_is_asked_about(server: Server, online: Desk) -> None:
    server.add("org/m", gated="manual")
    server.add("org/m/auth-check")
    online.environ["HF_TOKEN"] = "hf_secret"
    assert online.told(model="org/m") == []
    assert server.asked == [
        ("/api/models/org/m", "Bearer hf_secret"),
        ("/api/models/org/m/auth-check", "Bearer hf_secret"),
    ]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_without_access(server: Server, online: Desk, status: int) -> None:
    server.add("org/m", gated="manual")
    server.add("org/m/auth-check", status)
    online.environ["HF_TOKEN"] = "hf_secret"
    (said,) = online.told(model="org/m")
    assert said == (
        "--model: org/m is gated, and HF_TOKEN was not granted access to it "
        f"(ask for access at {server.url}/org/m)"
    )
    assert "hf_secret" not in said


def test_a_login_on_the_nodes_is_a_token_too(server: Server, online: Desk) -> None:
    server.add("org/m", gated="manual")
    (online.folder / "hf").mkdir()
    (online.folder / "hf" / "token").write_text("hf_other")
    assert online.told(model="org/m") == []
    assert [token for _, token in server.asked] == [None]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_that_the_hub_does_not_know(server: Server, online: Desk, status: int) -> None:
    server.add("org/m", status)
    assert online.told(model="org/m") == [
        f"--model: the hub has no model org/m, or it is private (look at {server.url}/org/m, or give `model_source`)"
    ]
    online.environ["HF_TOKEN"] = "hf_secret"
    assert online.told(model="org/m")[0].startswith(
        "--model: the hub has no model org/m that HF_TOKEN may see"
    )


@pytest.mark.parametrize("name", ["a/b/c", "org/m?x=1", "org/../m x", "org/m\r\nX: 1", "ü/m", "x" * 200])
def test_a_name_that_the_hub_cannot_have_is_not_sent(server: Server, online: Desk, name: str) -> None:
    (said,) = online.told(model=name)
    assert "the hub has no model" in said
    assert server.asked == []


def test_the_weights_of_the_site_are_offered(server: Server, online: Desk, gpus: Callable[..., str]) -> None:
    server.add("org/m", gated="manual")
    folder = write_model(online.folder / "site" / "m", LLAMA_70B)
    site = gpus(None, weights_dir=str(folder.parent))
    (said,) = online.told(model="org/m", platform=site)
    assert said.endswith("export HF_TOKEN; or set `model_source: ~/site/m`)")


def test_what_is_here_is_not_asked_for(server: Server, online: Desk) -> None:
    write_model(online.folder / "m", LLAMA_70B)
    write_model(online.folder / "hf" / "hub" / "models--org--m", LLAMA_70B)
    online.told(model="./m")
    online.told(model="org/m")
    online.told(model="org/x", model_source="./m")
    online.told(model="org/x", engine="sim")
    online.told(model="org/x", skip_staging=True)
    online.told(model="org/x", env={"HF_HUB_OFFLINE": "1"})
    online.told(model="org/x", env={"HF_ENDPOINT": "http://elsewhere.test"})
    online.environ["TRANSFORMERS_OFFLINE"] = "TRUE"
    online.told(model="org/x")
    assert server.asked == []


def test_a_download_is_asked_for(server: Server, online: Desk) -> None:
    server.add("org/m", gated="manual")
    assert len(online.told(model="org/m", model_source="./later", download_weights=True)) == 1


def test_each_model_is_asked_for_once(server: Server, online: Desk) -> None:
    server.add("org/m", gated=False)
    server.add("org/n", gated="auto")
    found = online.told("models:\n  - model: org/m\n  - model: org/n\n  - model: org/m\n  - model: org/n\n")
    assert [line.partition(": ")[0] for line in found] == ["!~/d.yaml:3", "!~/d.yaml:5"]
    assert len(server.asked) == 2


def test_the_size_that_the_hub_tells_is_checked(
    server: Server, online: Desk, gpus: Callable[..., str]
) -> None:
    server.add("org/m", gated=False, safetensors={"parameters": {"BF16": 70 * 10**9}, "total": 70 * 10**9})
    (said,) = online.told(model="org/m", platform=gpus(64))
    assert said == (
        "--model: the 130.4 GiB of weights of org/m do not fit: a GPU of 64.0 GiB gives 58.9 GiB "
        "(--gpu-memory-utilization 0.92) (a tensor_parallel_size of 4 holds them)"
    )
    assert online.told(model="org/m", platform=gpus(64), tensor_parallel_size=4) == []


def test_a_hub_that_is_not_there_says_nothing(online: Desk) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        online.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert online.told(model="org/m") == []


@pytest.mark.parametrize("endpoint", ["ftp://x.test", "file:///etc", "nonsense", "http://", "http://[", "/"])
def test_an_address_that_is_none_says_nothing(endpoint: str) -> None:
    assert ask("org/m", {"HF_ENDPOINT": endpoint}, "hf_secret").state == "silent"


def test_a_hub_that_hangs_is_not_waited_for_and_not_asked_again(
    online: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        online.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        began = time.monotonic()
        assert online.told("models:\n  - model: org/m\n  - model: org/n\n  - model: org/o\n") == []
        assert time.monotonic() - began < 2


def test_an_answer_that_only_trickles_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", 0.3)
    done = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not done.wait(0.05):
                connection.sendall(b"X: y\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        began = time.monotonic()
        answer = ask("org/m", {"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}"}, None)
        assert answer.state == "silent"
        assert time.monotonic() - began < 2
        done.set()
        thread.join()


def test_a_model_that_was_renamed_is_followed_on_the_same_host(server: Server) -> None:
    server.routes["/api/models/old/m"] = (307, b"", {"Location": "/api/models/new/m"})
    server.add("new/m", gated="auto")
    assert ask("old/m", {"HF_ENDPOINT": server.url}, None).state == "gated"


def test_no_token_goes_to_another_host(server: Server) -> None:
    other = Server()
    try:
        server.routes["/api/models/org/m"] = (302, b"", {"Location": f"{other.url}/api/models/org/m"})
        other.add("org/m", gated=False)
        assert ask("org/m", {"HF_ENDPOINT": server.url}, "hf_secret").state == "silent"
        assert other.asked == []
    finally:
        other.http.shutdown()
        other.http.server_close()


def test_a_proxy_is_used_and_reads_no_token(server: Server) -> None:
    server.routes["http://hub.test/api/models/org/m"] = (200, {"gated": False}, {})
    environ = {"HF_ENDPOINT": "http://hub.test", "http_proxy": server.url}
    assert ask("org/m", environ, "hf_secret") == Answer("open")
    assert server.asked == [("http://hub.test/api/models/org/m", None)]


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_what_needs_no_proxy_goes_without(server: Server, name: str) -> None:
    server.add("org/m", gated=False)
    environ = {"HF_ENDPOINT": server.url, "http_proxy": "http://127.0.0.1:9", name: "localhost,127.0.0.1"}
    assert ask("org/m", environ, None).state == "open"


def test_an_encrypted_hub_is_reached_through_a_tunnel(server: Server) -> None:
    environ = {"HF_ENDPOINT": "https://hub.test", "HTTPS_PROXY": server.url}
    assert ask("org/m", environ, "hf_secret").state == "silent"  # the proxy of the test makes no tunnels
    assert server.asked == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"gated": {}}', b"[" * 10_000])
def test_an_answer_that_is_none_says_nothing(server: Server, body: bytes) -> None:
    server.routes["/api/models/org/m"] = (200, body, {})
    assert ask("org/m", {"HF_ENDPOINT": server.url}, None) == Answer("silent")


@pytest.mark.parametrize("status", [500, 503, 429, 301])
def test_a_hub_in_trouble_says_nothing(server: Server, status: int) -> None:
    server.add("org/m", status)
    assert ask("org/m", {"HF_ENDPOINT": server.url}, None) == Answer("silent")


def test_a_token_that_is_none_is_no_crash(server: Server) -> None:
    server.add("org/m", gated=False)
    assert ask("org/m", {"HF_ENDPOINT": server.url}, "hf\r\nX: 1").state == "silent"
    assert ask("org/m", {"HF_ENDPOINT": server.url}, "hf_ü✓").state == "silent"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.binary(max_size=60) | st.dictionaries(st.sampled_from(["gated", "safetensors"]), st.integers()))
def test_any_answer_is_read(server: Server, body: bytes | dict[str, int]) -> None:
    server.routes["/api/models/org/m"] = (200, body, {})
    ask("org/m", {"HF_ENDPOINT": server.url}, None)
