"""A lab of its own for each test: the real `aegis` command, in a folder, a home and processes of this test alone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK = "AEGIS_TEST_LAB"  # environment variable of every process that comes from a lab
PATIENCE = 30.0
GONE_SECONDS = 10.0  # for processes that are on their way out
QUICK = {"probe_interval": 0.2, "backoff_first": 0.2}  # seconds; see `Policy` of fleet/agent/vitals.py


def wait_until(true: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """Return the first true answer; the test fails if none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        if found := true():
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what or true}")
        time.sleep(0.02)


class Process(NamedTuple):
    pid: int
    command: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def is_alive(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] not in {b"Z", b"X"}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def request(address: str, method: str, path: str, body: Any = None, timeout: float = 20.0) -> tuple[int, str]:
    """Ask a server; 0 and the reason where nothing answers."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(
            method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def chat(endpoint: str, model: str, timeout: float = 60.0) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    code, text = request(endpoint, "POST", "/v1/chat/completions", body, timeout)
    assert code == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


class Job:
    """A submitted or launched job, seen through its files and the registry."""

    def __init__(self, lab: Lab, handle: str) -> None:
        self.lab = lab
        self.handle = handle
        self.id = handle.partition("://")[2]

    @property
    def run_dir(self) -> Path:
        return next(iter(self.lab.path.rglob(f"*.{self.id}.json"))).parent

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / f"{self.run_dir.name}.json").read_text())
        return found

    @property
    def endpoints_file(self) -> Path:
        return Path(self.manifest["endpoints_file"])

    @property
    def endpoints(self) -> list[str]:
        try:
            return self.endpoints_file.read_text().split()
        except FileNotFoundError:
            return []

    @property
    def registry(self) -> str:
        """HOST:PORT of its registry."""
        return str(self.manifest["registry_url"]).removeprefix("http://")

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """What its registry knows, by id; nothing where it does not answer."""
        code, text = request(self.registry, "GET", "/services")
        return {service["service_id"]: service for service in json.loads(text)} if code == 200 else {}

    def states(self) -> dict[str, str]:
        return {name: service["status"] for name, service in self.services.items()}

    def service(self, name: str) -> dict[str, Any]:
        return self.services.get(name) or {"status": "unknown", "metadata": {}}

    def wait_for(self, name: str, status: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Return the service when its registry shows that state."""

        def seen() -> dict[str, Any] | None:
            service = self.service(name)
            return service if service["status"] == status else None

        found: dict[str, Any] = wait_until(seen, f"{name} {status}", seconds)
        return found

    @property
    def log(self) -> str:
        return (self.run_dir / f"{self.run_dir.name}.err").read_text()

    @property
    def head(self) -> Process:
        return Process(self.manifest["pid"], "head")

    def find(self, *words: str) -> list[Process]:
        """Return its live processes whose command has all the words."""
        mine = [*words, str(self.run_dir)]
        return [each for each in self.lab.processes() if all(word in each.command for word in mine)]

    def engine(self, name: str) -> Process:
        return Process(self.service(name)["metadata"]["pid"], name)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lab.aegis("status", self.handle, "--json").out)
        return found


class Lab:
    """A folder, a home, and everything that was started from them."""

    def __init__(self, path: Path, mark: str) -> None:
        self.path = path
        self.mark = mark
        self.work = path / "work"
        self.running: list[subprocess.Popen[str]] = []
        keep = {
            name: os.environ[name]
            for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR")
            if name in os.environ
        }
        self.environ = {
            **keep,
            MARK: mark,
            "HOME": str(path / "home"),
            "XDG_STATE_HOME": str(path / "state"),
            "AEGIS_AGENT_POLICY": json.dumps(QUICK),
        }
        for folder in (self.work, path / "home"):
            folder.mkdir(parents=True)

    def policy(self, **seconds: float) -> None:
        """Give the agents of later launches a patience of their own."""
        self.environ["AEGIS_AGENT_POLICY"] = json.dumps({**QUICK, **seconds})

    def deployment(self, name: str = "deployment.yaml", **keys: Any) -> Path:
        """Write a deployment of simulated servers."""
        defaults: dict[str, Any] = {"platform": "local", "log_dir": "logs"}
        if "models" not in keys:
            defaults |= {"model": "rehearsal-1B", "engine": "sim"}
        file = self.work / name
        file.write_text(yaml.safe_dump({**defaults, **keys}))
        return file

    def aegis(
        self, *args: object, timeout: float = 60.0, code: int | None = 0, cwd: Path | None = None
    ) -> Answer:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "aegis", *map(str, args)],
            cwd=cwd or self.work,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (
            f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def submit(self, *args: object, code: int = 0, timeout: float = 60.0, **keys: Any) -> Job:
        """Submit a deployment, wait for it, and return the job."""
        answer = self.aegis(
            "submit", "--config", self.deployment(**keys), "--wait", *args, code=code, timeout=timeout
        )
        return self.job(answer.err.partition("submitted ")[2].split()[0])

    def job(self, handle: str) -> Job:
        return Job(self, handle)

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start a command that stays; its output goes to out.N and err.N."""
        number = len(self.running)
        with (self.path / f"out.{number}").open("w") as out, (self.path / f"err.{number}").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aegis", *map(str, args)],
                cwd=self.work,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )
        self.running.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> Answer:
        """Return what a started command has said so far; its code once it has ended."""
        number = self.running.index(process)
        out, err = ((self.path / f"{name}.{number}").read_text() for name in ("out", "err"))
        return Answer(-1 if process.poll() is None else process.returncode, out, err)

    def processes(self) -> list[Process]:
        """Return the live processes of this lab: by the mark, or by a folder of it in their command or as theirs."""
        found = []
        for entry in os.listdir("/proc"):  # noqa: PTH208 - read often
            if not entry.isdigit():
                continue
            process = Path("/proc", entry)
            try:
                command = (process / "cmdline").read_bytes()
                environ = (process / "environ").read_bytes()
                folder = os.fsencode((process / "cwd").readlink())
            except OSError:
                continue
            here = os.fsencode(self.path)
            marked = f"{MARK}={self.mark}".encode() in environ.split(b"\0")
            ours = marked or here in command or folder == here or folder.startswith(here + b"/")
            if ours and int(entry) != os.getpid() and Process(int(entry), "").is_alive:
                found.append(Process(int(entry), command.replace(b"\0", b" ").decode(errors="replace")))
        return found

    def is_empty(self) -> bool:
        return not self.processes()

    def close(self) -> None:
        """End what the test left running the way a user would; nothing may remain."""
        for process in self.running:
            if process.poll() is None:
                process.terminate()
        for job in json.loads(self.aegis("status", "--json", cwd=self.path).out):
            if job["model_status"] not in {"FAILED", "SHUTDOWN"}:
                self.aegis("shutdown", job["job_id"], code=None, cwd=self.path)
        for process in self.running:
            process.wait(60)
        deadline = time.monotonic() + GONE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for each in left:
            each.kill()
        assert not left, f"left behind: {left}"


@pytest.fixture
def lab(tmp_path: Path, own_environment: None) -> Iterator[Lab]:
    made = Lab(tmp_path, f"{tmp_path.name}-{os.getpid()}")
    yield made
    made.close()
