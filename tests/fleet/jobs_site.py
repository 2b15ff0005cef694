"""A user with jobs: an index, run directories, a scheduler that says what a test wants, servers that answer."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegis.errors import NotFoundError
from aegis.fleet.jobs import Jobs
from aegis.fleet.watch import Policy
from aegis.registry.model import Service
from aegis.runs import Manifest, RunDir, register
from aegis.schedulers.base import JobLogs, JobStatus, SchedulerInfo, SchedulerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest

    from aegis.schedulers.base import JobRequest, Submission

QUICK = Policy(
    first=0.02, longest=0.05, retry=0.0, patience=0.2, first_patience=2.0, tick=0.01, far_tick=0.01
)
RUNNING = JobStatus(state="LAUNCHING", word="RUNNING", nodes="node[1-2]")


class Fake:
    """A scheduler whose answers are a dictionary."""

    def __init__(self, name: str = "slurm") -> None:
        self.name = name
        self.answers: dict[str, JobStatus] = {}
        self.down = ""
        self.asked: list[list[str]] = []
        self.cancelled: list[str] = []
        self.on_cancel: Callable[[str], None] = lambda handle: None

    def describe(self) -> SchedulerInfo:
        return SchedulerInfo(self.name, available=True, detail="a fake")

    def render(self, request: JobRequest) -> str:
        raise NotImplementedError

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        raise NotImplementedError

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        self.asked.append(list(handles))
        if self.down:
            raise SchedulerUnavailable(self.down)
        return {handle: self.answers[handle] for handle in handles if handle in self.answers}

    def cancel(self, handle: str) -> None:
        if self.down:
            raise SchedulerUnavailable(self.down)
        if not any(known.partition("+")[0] == handle.partition("+")[0] for known in self.answers):
            raise NotFoundError(f"there is no job {handle}")
        self.cancelled.append(handle)
        self.on_cancel(handle)

    def logs(self, handle: str) -> JobLogs:
        raise NotImplementedError


class Servers:
    """A registry and the servers that it lists, all at one address of this machine."""

    def __init__(self, **states: str) -> None:
        self.states: dict[str, str] = states or {"m-0": "healthy"}
        self.others: list[Service] = []  # that the registry lists besides
        self.registry_down = False
        self.healthy = True
        self.busy = 0
        self.posts: list[str] = []
        self.on_stop: Callable[[], None] = lambda: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def answer(self, method: str, path: str) -> tuple[int, bytes]:
        if path == "/health":
            return (200 if self.healthy else 503), b""
        if path == "/metrics":
            self.busy = max(0, self.busy - 1)
            return 200, f"vllm:num_requests_running {self.busy}\n".encode()
        if self.registry_down:
            return 500, b'{"error": "out of order"}'
        if method == "POST":
            self.posts.append(path)
            if path == "/stop":
                self.on_stop()
                return 200, b"{}"
            return 200, msgspec.json.encode(self.service(path.split("/")[2]))
        return 200, msgspec.json.encode([*map(self.service, self.states), *self.others])

    def service(self, name: str) -> Service:
        return Service(
            service_id=name,
            host="127.0.0.1",
            port=self.server.server_port,
            service_type="vllm",
            status=self.states[name],  # type: ignore[arg-type]
            last_seen=time.time(),
            metadata={"model": "m", "reason": "out of memory" if self.states[name] == "failed" else ""},
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        servers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = servers.answer(self.command, self.path)
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - as it is called

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called
                pass

        return Handler


class Site:
    """A home with an index of jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.environ = {
            "HOME": str(folder),
            "AEGIS_STATE_DIR": str(folder / "state"),
            "PATH": os.environ["PATH"],
        }
        self.slurm = Fake("slurm")
        self.pbs = Fake("pbs")

    def jobs(self, policy: Policy = QUICK) -> Jobs:
        return Jobs(self.environ, policy=policy, schedulers={"slurm": self.slurm, "pbs": self.pbs})

    def job(self, handle: str, status: JobStatus | None = None, **fields: Any) -> Manifest:
        """Make the run directory of a job, and let its scheduler know it."""
        models = fields.pop("models", ["org/m-7B"])
        run = RunDir.create(str(self.logs), models[0], handle.partition("://")[2])
        values: dict[str, Any] = {
            "state": "PENDING",
            "created": time.time() - 3600,
            "host": "node1",
            **fields,
        }
        manifest = Manifest(
            job=handle,
            name="n",
            models=models,
            run_dir=str(run.path),
            endpoints_file=str(run.path / "endpoints"),
        )
        manifest = msgspec.structs.replace(manifest, **values)
        run.write_manifest(manifest)
        register(handle, run, self.environ)
        if status:
            fake = self.slurm if handle.startswith("slurm") else self.pbs
            fake.answers[handle] = status
        return manifest

    def note(self, handle: str, **fields: Any) -> None:
        """Let the job write into its manifest."""
        run = self.run(handle)
        run.write_manifest(msgspec.structs.replace(run.read_manifest(), **fields))

    def run(self, handle: str) -> RunDir:
        (found,) = self.logs.glob(f"*/*.{handle.partition('://')[2]}")
        return RunDir.at(Path(found))

    def read(self, handle: str) -> Manifest:
        return self.run(handle).read_manifest()


def command_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line of this process see the site, with its schedulers on PATH."""
    folder = site.folder / "bin"
    folder.mkdir()
    for name in ("sbatch", "qsub"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{site.folder}/ran'\n")
        (folder / name).chmod(0o755)
    site.environ["PATH"] = f"{folder}:{site.environ['PATH']}"
    for name, value in site.environ.items():
        monkeypatch.setenv(name, value)
    fakes = {"slurm": site.slurm, "pbs": site.pbs}
    monkeypatch.setattr("aegis.fleet.jobs.scheduler_for", lambda name, transport, environ: fakes[name])
    monkeypatch.setattr("aegis.fleet.jobs.Policy", lambda: QUICK)
