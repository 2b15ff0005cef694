"""The agent as a process, with a fake engine and a fake registry: real signals, ports, files and deaths."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.fleet.agent.engine import INTERNAL_PORT_MARK, PORT_MARK
from aegis.fleet.agent.processes import children_of
from aegis.fleet.archive import agent_archive
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.lab  # 40 s, most of it waiting
PATIENCE = 15.0  # seconds for anything to happen on a busy machine
RUN_MARK = "AEGIS_TEST_RUN"  # in the environment of everything that one test starts
QUICK = {
    "probe_interval": 0.1,
    "probe_timeout": 0.4,
    "canary_interval": 0.2,
    "canary_timeout": 0.4,
    "wedge_timeout": 0.5,
    "restart_after": 60.0,
    "stop_grace": 3.0,
    "backoff_first": 0.05,
    "backoff_most": 2.0,
    "startup_timeout": 60.0,
}
CAUSES = [
    ["Address already in use", "port is taken: address already in use", False],
    ["model not found: (.*)", "model not found: {}", True],
]
NAMES = {"running": ["vllm:num_requests_running"], "generation_tokens": ["vllm:generation_tokens_total"]}

# What it does is told by files in its folder: health, canary (a code, or `hang`), running, tokens, say (its last words),
# child (a process in a session of its own), deaf (to TERM). What it saw is written beside them.
ENGINE = """
import json, os, signal, socketserver, subprocess, sys, threading, time

port, folder = int(sys.argv[1]), sys.argv[2]

def told(name, otherwise):
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return otherwise

def write(name, what):
    with open(os.path.join(folder, name), "a") as file:
        file.write(json.dumps(what) + "\\n")

def on_term(*_):
    write("terms", time.time())
    if told("deaf", "") == "":
        os._exit(0)

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        method, path = self.rfile.readline().decode().split()[:2]
        length = 0
        while True:
            line = self.rfile.readline().strip().lower()
            if not line:
                break
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = self.rfile.read(length).decode()
        code, page = "200", "{}"
        if path == "/metrics":
            page = 'vllm:num_requests_running{engine="0"} %s\\nvllm:generation_tokens_total{engine="0"} %s\\n' % (
                told("running", "0"), told("tokens", "0").replace("moving", str(time.time_ns())))
        elif path == "/v1/completions":
            write("canaries", json.loads(body))
            code = told("canary", "200")
        elif path == "/v1/models":
            page = '{"data": [{"id": "%s"}]}' % told("model", "m")
        elif path == "/health":
            code = told("health", "200")
        if code == "drip":
            self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
            while True:
                self.wfile.write(b".")
                time.sleep(0.05)
        while code == "hang":
            time.sleep(0.05)
            code = told("canary" if "completions" in path else "health", "200")
        self.wfile.write(("HTTP/1.1 %s X\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s" % (
            code, len(page), page)).encode())

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

signal.signal(signal.SIGTERM, on_term)
write("starts", {"pid": os.getpid(), "port": port, "argv": sys.argv[1:], "env": dict(os.environ), "time": time.time(),
                 "cpus": sorted(os.sched_getaffinity(0)), "cwd": os.getcwd()})
if told("child", ""):
    subprocess.Popen([sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                     start_new_session=True)
if told("say", ""):
    print(told("say", ""), flush=True)
    sys.exit(1)
if told("silent", ""):
    time.sleep(600)
print("listening on", port, flush=True)
Server(("127.0.0.1", port), Handler).serve_forever()
"""


def wait_until(true: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {PATIENCE:.0f} s: {what or true}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


class Registry:
    """Takes pushes, and answers what a test wants."""

    def __init__(self, port: int = 0) -> None:
        self.pushes: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.tokens: list[str | None] = []
        self.answer: Any = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                registry.tokens.append(self.headers["Authorization"])
                registry.times.append(time.monotonic())
                registry.pushes.append({"path": self.path, **json.loads(body, parse_constant=pytest.fail)})
                answer = json.dumps(registry.answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def last(self, name: str = "m-0") -> dict[str, Any]:
        for push in reversed(self.pushes):
            for service in push["services"]:
                if service["service_id"] == name:
                    found: dict[str, Any] = service
                    return found
        return {"status": None, "metadata": {"reason": ""}}

    def history(self, name: str = "m-0") -> list[str]:
        """The statuses that were told, each change once."""
        told = [
            each["status"] for push in self.pushes for each in push["services"] if each["service_id"] == name
        ]
        return [status for at, status in enumerate(told) if at == 0 or told[at - 1] != status]

    def wait(self, status: str, name: str = "m-0", reason: str = "", **metadata: Any) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            service = self.last(name)
            held = service["metadata"]
            good = service["status"] == status and reason in held["reason"]
            return (
                service if good and all(held.get(key) == value for key, value in metadata.items()) else None
            )

        try:
            found: dict[str, Any] = wait_until(there)
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}; the last that was told: {self.last(name)}")
        return found


class Node:
    """One agent, its orders and its engines."""

    def __init__(self, folder: Path, registry_port: int) -> None:
        self.folder = folder
        self.registry_url = f"http://127.0.0.1:{registry_port}"
        self.run = uuid.uuid4().hex
        self.instances: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.err = folder / "agent.err"
        self.python = sys.executable
        (folder / "engine.py").write_text(ENGINE)
        self.agent = folder / "agent.pyz"
        self.agent.write_bytes(agent_archive())

    def instance(self, name: str = "m-0", **changes: Any) -> Path:
        """Add an instance; return the folder through which its engine is told what to do."""
        orders = self.folder / f"{name}.orders"
        orders.mkdir()
        policy = {**QUICK, **changes.pop("policy", {})}
        order = {
            "id": name,
            "service_type": "vllm",
            "rank": 0,
            "argv": [
                sys.executable,
                "-I",
                "-S",
                str(self.folder / "engine.py"),
                PORT_MARK,
                str(orders),
            ],
            "env": {},
            "unset": [],
            "cwd": str(self.folder),
            "cpus": [],
            "address": "127.0.0.1",
            "bind": "127.0.0.1",
            "port": free_port(),
            "internal_port": 40000,
            "port_pinned": False,
            "port_block": 2000,
            "log": str(self.folder / f"{name}.log"),
            "health": {
                "path": "/health",
                "canary_path": "/v1/completions",
                "canary": {"model": "m", "prompt": "1", "max_tokens": 1},
            },
            "metrics": NAMES,
            "causes": CAUSES,
            "policy": policy,
            "metadata": {
                "model": "m",
                "instance": name.partition(".")[0],
                "rank": 0,
                "members": 1,
                "node": "n",
            },
        }
        self.instances.append({**order, **changes})
        return orders

    def command(self, *arguments: str) -> list[str]:
        fleet = self.folder / "fleet.jsonl"
        order = {
            "node": "n",
            "registry": self.registry_url,
            "push_interval": 0.3,
            "instances": self.instances,
        }
        compact = (",", ":")
        other = json.dumps({**order, "node": "n2", "instances": []}, separators=compact)
        fleet.write_text(f"{other}\n{json.dumps(order, separators=compact)}\n")
        return [self.python, "-I", str(self.agent), str(fleet), "--node", "n", *arguments]

    def start(self, *arguments: str) -> Node:
        arguments = arguments or ("--parent", str(os.getpid()))
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                self.command(*arguments), env={**os.environ, RUN_MARK: self.run}, stderr=err
            )
        return self

    @property
    def guard(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def worker(self) -> int:
        found: list[int] = wait_until(lambda: children_of(self.guard), "no worker")
        return found[0]

    def starts(self, name: str = "m-0") -> list[dict[str, Any]]:
        return self.records(name, "starts")

    def records(self, name: str, kind: str) -> list[Any]:
        file = self.folder / f"{name}.orders" / kind
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def left(self) -> list[int]:
        """Everything of this test that still runs, wherever it moved to."""
        wanted = f"{RUN_MARK}={self.run}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def wait_end(self) -> int:
        assert self.process is not None
        code = self.process.wait(PATIENCE)
        wait_until(lambda: not self.left(), "processes were left behind")
        return code

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8.0)
        for _ in range(50):
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not self.left():
                break
            time.sleep(0.02)
        if self.process is not None:
            self.process.wait(5.0)


@pytest.fixture
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.close()


@pytest.fixture
def node(tmp_path: Path, registry: Registry) -> Iterator[Node]:
    found = Node(tmp_path, registry.port)
    yield found
    found.close()


# ------------------------------------------------------------------------------------------- a good life


def test_from_pending_to_healthy_to_stopped(node: Node, registry: Registry) -> None:
    node.instance(metadata={"model": "m", "instance": "m-0", "extra": [1]})
    node.start()
    told = registry.wait("healthy")
    assert registry.history()[-2:] == ["starting", "healthy"]
    assert registry.pushes[-1]["path"] == "/nodes/n"
    assert (told["host"], told["port"]) == ("127.0.0.1", node.instances[0]["port"])
    held = told["metadata"]
    assert (held["restarts"], held["generation"], held["extra"]) == (0, 1, [1])
    assert held["pid"] == node.starts()[0]["pid"]
    assert held["ready_after"] < PATIENCE
    assert told["age"] < PATIENCE
    assert node.records("m-0", "canaries")[0] == node.instances[0]["health"]["canary"]
    wait_until(lambda: "tokens" in registry.last()["metadata"]["load"])
    os.kill(node.guard, signal.SIGTERM)
    assert node.wait_end() == 0
    assert registry.last()["status"] == "stopped"
    log = (node.folder / "m-0.log").read_text()
    assert f"listening on {told['port']}" in log
    assert f"start 1 on port {told['port']}" in log


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_other_pythons_run_it(node: Node, registry: Registry, version: str) -> None:
    # The test's HOME is a fresh one: look beside the interpreter that runs it.
    found = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))
    if not found:
        pytest.skip(f"no Python {version} here")
    node.python = str(found[0])
    node.instance()
    node.start()
    registry.wait("healthy")
    os.kill(node.guard, signal.SIGTERM)
    assert node.wait_end() == 0
    assert node.err.read_text() == ""


def test_hostile_names_arrive_exactly(node: Node, registry: Registry) -> None:
    hostile = [
        "two words",
        "'\"",
        "a\nb",
        "$(touch X)",
        "`touch X`",
        "; touch X",
        "ä\u2028",
        "{aegis:x}",
        "-n",
        "",
    ]
    node.instance(env={f"H{at}": text for at, text in enumerate(hostile)}, unset=["GONE"])
    node.instances[0]["argv"] += hostile
    node.instances[0]["env"]["PORTS"] = f"{PORT_MARK}-{INTERNAL_PORT_MARK}"
    node.instances[0]["health"]["canary"]["model"] = "".join(hostile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GONE", "1")
        node.start()
    registry.wait("healthy")
    start = node.starts()[0]
    assert start["argv"][2:] == hostile
    assert [start["env"][f"H{at}"] for at in range(len(hostile))] == hostile
    assert start["env"]["PORTS"] == f"{start['port']}-40000"
    assert "GONE" not in start["env"]
    assert start["cwd"] == str(node.folder)
    assert not (node.folder / "X").exists()
    assert node.records("m-0", "canaries")[0]["model"] == "".join(hostile)


def test_cpus_are_bound(node: Node, registry: Registry) -> None:
    core = min(os.sched_getaffinity(0))
    node.instance(cpus=[core])
    node.instance("m-1", cpus=[4000])  # not ours: said, and started all the same
    node.start()
    registry.wait("healthy")
    registry.wait("healthy", "m-1")
    assert node.starts()[0]["cpus"] == [core]
    assert "CPUs 4000 are not ours" in (node.folder / "m-1.log").read_text()


# ------------------------------------------------------------------------------------------- secrets


def test_secrets_reach_the_engine_and_the_registry(node: Node, registry: Registry) -> None:
    secrets = node.folder / "secrets"
    secrets.touch(0o600)
    secrets.write_text(json.dumps({"registry_token": "t0k", "env": {"HF_TOKEN": "hf"}}))
    node.instance()
    node.start("--secrets", str(secrets))
    registry.wait("healthy")
    assert set(registry.tokens) == {"Bearer t0k"}
    assert node.starts()[0]["env"]["HF_TOKEN"] == "hf"
    command = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in node.left())
    assert b"t0k" not in command
    assert "t0k" not in json.dumps(registry.pushes)
    assert "t0k" not in json.dumps(node.starts())


@pytest.mark.parametrize(
    ("mode", "text", "said"),
    [(0o644, "{}", "may be read by others"), (0o600, "{", "Expecting"), (None, "", "No such file")],
)
def test_bad_secrets_are_refused(node: Node, mode: int | None, text: str, said: str) -> None:
    secrets = node.folder / "secrets"
    if mode is not None:
        secrets.write_text(text)
        secrets.chmod(mode)
    node.instance()
    node.start("--secrets", str(secrets))
    assert node.wait_end() == 1
    assert said in node.err.read_text()
    assert "Traceback" not in node.err.read_text()
    assert not node.starts()


def test_a_node_without_a_line_is_told(node: Node) -> None:
    node.start("--node", "nowhere")
    assert node.wait_end() == 1
    assert "no line for node nowhere" in node.err.read_text()


# ------------------------------------------------------------------------------------------- deaths


def test_a_killed_engine_is_restarted(node: Node, registry: Registry) -> None:
    node.instance(policy={"backoff_first": 0.4})
    node.start()
    first = registry.wait("healthy")["metadata"]["pid"]
    os.kill(first, signal.SIGKILL)
    registry.wait("healthy", restarts=1)
    assert registry.history()[-4:] == ["healthy", "unhealthy", "starting", "healthy"]
    reasons = [push["services"][0]["metadata"]["reason"] for push in registry.pushes]
    assert any(reason.startswith("killed by SIGKILL") and "next start in" in reason for reason in reasons)
    assert registry.last()["metadata"]["generation"] == 2
    assert registry.last()["metadata"]["pid"] != first


def test_children_in_other_sessions_end_with_their_engine(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"stop_grace": 0.3})
    (orders / "child").write_text("yes")
    node.start()
    engine = registry.wait("healthy")["metadata"]["pid"]
    child = wait_until(lambda: children_of(engine))[0]
    assert os.getsid(child) == child
    os.kill(engine, signal.SIGKILL)
    registry.wait("healthy", restarts=1)
    assert not is_alive(child)
    os.kill(node.guard, signal.SIGTERM)
    assert node.wait_end() == 0


@pytest.mark.parametrize("victim", ["worker", "guard"])
def test_nothing_is_left_when_the_agent_is_killed(node: Node, registry: Registry, victim: str) -> None:
    orders = node.instance()
    (orders / "child").write_text("yes")
    node.instance("m-1")
    node.start()
    registry.wait("healthy")
    registry.wait("healthy", "m-1")
    assert len(node.left()) == 5
    os.kill(node.worker if victim == "worker" else node.guard, signal.SIGKILL)
    assert node.wait_end() == (128 + signal.SIGKILL if victim == "worker" else -signal.SIGKILL)


def test_nothing_is_left_when_the_parent_is_killed(node: Node, registry: Registry) -> None:
    orders = node.instance()
    (orders / "child").write_text("yes")
    code = "import os, subprocess, sys; subprocess.run([*sys.argv[1:], '--parent', str(os.getpid())])"
    node.process = subprocess.Popen(
        [sys.executable, "-c", code, *node.command()], env={**os.environ, RUN_MARK: node.run}
    )
    registry.wait("healthy")
    node.process.kill()
    node.wait_end()


def test_term_first_and_kill_after_the_grace(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"stop_grace": 0.5})
    (orders / "deaf").write_text("yes")
    node.instance("m-1", policy={"stop_grace": 30.0})
    node.start()
    registry.wait("healthy")
    registry.wait("healthy", "m-1")
    began = time.monotonic()
    os.kill(node.guard, signal.SIGTERM)
    assert node.wait_end() == 0
    assert time.monotonic() - began >= 0.5
    assert len(node.records("m-0", "terms")) == 1
    assert len(node.records("m-1", "terms")) == 1
    assert registry.last()["status"] == "stopped"


def test_a_hanging_probe_does_not_delay_the_end(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"canary_timeout": 60.0})
    (orders / "canary").write_text("hang")
    node.start()
    wait_until(lambda: node.records("m-0", "canaries"), "no canary")
    os.kill(node.guard, signal.SIGTERM)
    began = time.monotonic()
    assert node.wait_end() == 0
    assert time.monotonic() - began < 5.0
    assert len(node.records("m-0", "terms")) == 1


# ------------------------------------------------------------------------------------------- failed starts


def test_what_would_fail_again_is_given_up_at_once(node: Node, registry: Registry) -> None:
    orders = node.instance()
    (orders / "say").write_text("loading\nmodel not found: /no/such")
    node.start()
    assert node.wait_end() == 1
    told = registry.last()
    assert told["status"] == "failed"
    assert told["metadata"]["reason"] == "model not found: /no/such; exited with code 1"
    assert told["metadata"]["tail"] == ["loading", "model not found: /no/such"]
    assert len(node.starts()) == 1


def test_one_failed_instance_does_not_end_the_others(node: Node, registry: Registry) -> None:
    orders = node.instance()
    (orders / "say").write_text("model not found: x")
    node.instance("m-1")
    node.start()
    registry.wait("failed")
    registry.wait("healthy", "m-1")


def test_a_crash_loop_pauses_longer_and_longer_then_fails(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"max_restarts": 3, "backoff_first": 0.2})
    (orders / "say").write_text("x" * 100_000 + "\nboom")
    node.start()
    assert node.wait_end() == 1
    told = registry.last()
    assert (told["status"], told["metadata"]["restarts"]) == ("failed", 3)
    assert told["metadata"]["tail"][-1] == "boom"
    assert len(json.dumps(told)) < 10_000  # a line of any length does not choke the registry
    times = [start["time"] for start in node.starts()]
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert len(pauses) == 3
    for pause, least in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert pause >= least


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"argv": ["/no/such/engine"]}, "cannot run /no/such/engine: No such file"),
        ({"cwd": "/no/such/folder"}, "No such file or directory"),
        ({"env": {"A": "b\0c"}}, "embedded null byte"),
        ({"argv": ["true", "x" * 200_000]}, "too long"),
    ],
)
def test_what_cannot_be_started_fails_with_a_reason(
    node: Node, registry: Registry, change: dict[str, Any], said: str
) -> None:
    node.instance(policy={"max_restarts": 1}, **change)
    node.start()
    assert node.wait_end() == 1
    told = registry.last()
    assert told["status"] == "failed"
    assert said in " ".join([told["metadata"]["reason"], *told["metadata"]["tail"]])
    assert "Traceback" not in node.err.read_text()


def test_a_start_that_never_answers_runs_out_of_time(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"startup_timeout": 0.8, "max_restarts": 1})
    (orders / "silent").write_text("yes")
    node.start()
    assert node.wait_end() == 1
    told = registry.last()
    assert told["status"] == "failed"
    assert "not healthy 1 s after its start (nothing listens on port" in told["metadata"]["reason"]
    assert "killed by" not in told["metadata"]["reason"]  # that was us
    assert len(node.starts()) == 2


# ------------------------------------------------------------------------------------------- wedged


@pytest.mark.parametrize(
    "illness", ["canary hangs", "canary 500", "tokens freeze", "health hangs", "health drips"]
)
def test_a_sick_engine_is_unhealthy_then_restarted(node: Node, registry: Registry, illness: str) -> None:
    orders = node.instance(policy={"restart_after": 1.0, "backoff_first": 0.5})
    node.start()
    registry.wait("healthy")
    files = {
        "canary hangs": {"canary": "hang"},
        "canary 500": {"canary": "500"},
        "tokens freeze": {"running": "2", "tokens": "7"},
        "health hangs": {"health": "hang"},
        "health drips": {"health": "drip"},
    }[illness]
    for name, text in files.items():
        (orders / name).write_text(text)
    said = "no answer from /health" if illness.startswith("health") else "wedged"
    registry.wait("unhealthy", reason=said)
    wait_until(lambda: len(node.starts()) > 1, "no restart")
    for name in files:
        (orders / name).unlink()
    registry.wait("healthy", restarts=1)
    reasons = [push["services"][0]["metadata"]["reason"] for push in registry.pushes]
    assert any("unhealthy for 1 s" in reason for reason in reasons)
    assert not any("killed by" in reason for reason in reasons)


def test_it_recovers_by_itself(node: Node, registry: Registry) -> None:
    orders = node.instance()
    node.start()
    registry.wait("healthy")
    (orders / "canary").write_text("503")
    registry.wait("unhealthy")
    (orders / "canary").unlink()
    registry.wait("healthy", restarts=0)
    assert len(node.starts()) == 1


def test_a_server_without_completions_is_healthy_and_a_stranger_on_our_port_is_not(
    node: Node, registry: Registry
) -> None:
    orders = node.instance()
    (orders / "canary").write_text("404")
    (orders / "model").write_text("of somebody else")
    node.start()
    registry.wait("starting", reason="it serves of somebody else")
    (orders / "model").unlink()
    registry.wait("healthy")


def test_a_canary_behind_a_burst_is_no_illness(node: Node, registry: Registry) -> None:
    orders = node.instance()
    (orders / "tokens").write_text("moving")  # another number with every look
    node.start()
    registry.wait("healthy")
    (orders / "canary").write_text("hang")
    before = len(node.records("m-0", "canaries"))
    wait_until(lambda: len(node.records("m-0", "canaries")) >= before + 3)
    assert "unhealthy" not in registry.history()


def test_a_hung_instance_delays_no_report_of_another(node: Node, registry: Registry) -> None:
    orders = node.instance(policy={"probe_timeout": 30.0, "canary_timeout": 30.0})
    node.instance("m-1")
    node.start()
    registry.wait("healthy")
    registry.wait("healthy", "m-1")
    (orders / "health").write_text("hang")
    os.kill(registry.last("m-1")["metadata"]["pid"], signal.SIGKILL)
    seen = len(registry.times)
    registry.wait("healthy", "m-1", restarts=1)
    wait_until(lambda: len(registry.times) > seen + 3)
    gaps = [later - sooner for sooner, later in pairwise(registry.times[seen:])]
    assert max(gaps) < 3.0
    assert len(node.starts("m-1")) == 2


# ------------------------------------------------------------------------------------------- ports


def test_a_pinned_port_that_is_taken_fails_with_its_owner(node: Node, registry: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        node.instance(port_pinned=True, port=other.getsockname()[1])
        node.start()
        assert node.wait_end() == 1
    reason = registry.last()["metadata"]["reason"]
    assert reason.startswith(f"port is taken: {other and node.instances[0]['port']} on 127.0.0.1")
    assert f"by pid {os.getpid()} (" in reason
    assert not node.starts()


def test_a_default_port_that_is_taken_moves_by_a_block(node: Node, registry: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        node.instance(port=taken, port_block=7)
        node.start()
        told = registry.wait("healthy")
    assert told["port"] > taken
    assert (told["port"] - taken) % 7 == 0
    assert node.starts()[0]["port"] == told["port"]


def test_two_agents_with_the_same_ports_do_not_meet(node: Node, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other", registry.port)
    try:
        node.instance()
        other.instance("o-0", port=node.instances[0]["port"], port_block=7)
        node.instances[0]["port_block"] = 7
        node.start()
        other.start()
        ports = {registry.wait("healthy")["port"], registry.wait("healthy", "o-0")["port"]}
        assert len(ports) == 2
        assert registry.last()["metadata"]["restarts"] + registry.last("o-0")["metadata"]["restarts"] == 0
    finally:
        other.close()


def test_a_port_lost_between_look_and_start_is_left(node: Node, registry: Registry) -> None:
    orders = node.instance(port_block=7)
    (orders / "say").write_text("OSError: [Errno 98] Address already in use")
    node.start()
    wait_until(node.starts)
    (orders / "say").unlink()
    registry.wait("healthy")


# ------------------------------------------------------------------------------------------- the registry


def test_the_registry_may_come_later_and_restart(tmp_path: Path) -> None:
    port = free_port()
    node = Node(tmp_path, port)
    node.instance()
    try:
        node.start()
        wait_until(lambda: node.records("m-0", "canaries"), "no canary")
        registry = Registry(port)
        registry.wait("healthy")
        registry.close()
        again = Registry(port)
        again.wait("healthy", restarts=0)
        again.close()
        os.kill(node.guard, signal.SIGTERM)
        assert node.wait_end() == 0
        assert len(node.starts()) == 1
    finally:
        node.close()


@pytest.mark.parametrize(
    "nonsense", [None, [], "x", {"drain": 5}, {"generations": {"m-0": "x"}}, {"generations": []}]
)
def test_nonsense_from_the_registry_ends_nothing(node: Node, registry: Registry, nonsense: Any) -> None:
    registry.answer = nonsense
    node.instance()
    node.start()
    registry.wait("healthy")
    registry.answer = {}
    seen = len(registry.pushes)
    wait_until(lambda: len(registry.pushes) > seen + 1)
    assert registry.last()["status"] == "healthy"
    assert node.err.read_text() == ""


def test_drain_and_stop_are_obeyed(node: Node, registry: Registry) -> None:
    node.instance()
    node.instance("m-1")
    node.start()
    registry.wait("healthy")
    registry.wait("healthy", "m-1")
    registry.answer = {"drain": ["m-0"]}
    registry.wait("draining")
    assert registry.last("m-1")["status"] == "healthy"
    registry.answer = {"stop": True}
    assert node.wait_end() == 0
    assert [registry.last(name)["status"] for name in ("m-0", "m-1")] == ["stopped", "stopped"]


def test_a_member_follows_a_newer_generation(node: Node, registry: Registry) -> None:
    node.instance("m-0.rank1", rank=1, service_type="vllm-member")
    node.start()
    told = registry.wait("healthy", "m-0.rank1")  # no API: running is all there is to see
    assert told["port"] == 0
    registry.answer = {"generations": {"m-0": 5, "other": 9}}
    told = registry.wait("healthy", "m-0.rank1", generation=5)
    assert told["metadata"]["restarts"] == 0  # no failure of its own
    assert len(node.starts("m-0.rank1")) == 2
    seen = len(registry.pushes)
    wait_until(lambda: len(registry.pushes) > seen + 2)
    assert len(node.starts("m-0.rank1")) == 2
    assert len(node.records("m-0.rank1", "terms")) == 1


# ------------------------------------------------------------------------------------------- disks


def test_a_log_that_cannot_be_written_stops_nothing(node: Node, registry: Registry) -> None:
    node.instance(log="/no/such/folder/m-0.log")
    node.start()
    told = registry.wait("healthy")
    assert told["metadata"]["log_error"] == "log not written: No such file or directory"


def test_a_full_disk_stops_nothing(node: Node, registry: Registry) -> None:
    disk = node.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system of our own can be mounted here")
    try:
        with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
            filler.write(b"x" * 1_000_000)
        node.instance(log=str(disk / "m-0.log"))
        node.start()
        told = registry.wait("healthy")
        assert told["metadata"]["log_error"] == "log not written: No space left on device"
        os.kill(node.guard, signal.SIGTERM)
        assert node.wait_end() == 0
    finally:
        node.close()
        subprocess.run(["umount", str(disk)], check=True)
