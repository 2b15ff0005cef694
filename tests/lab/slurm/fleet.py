"""A user of the lab who serves simulated models with the real `aegis` command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab.conftest import QUICK, wait_until

if TYPE_CHECKING:
    from aegis.schedulers.transport import Done

    from .lab import User

CHAT = {"model": "rehearsal-1B", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


class Fleet:
    """What one user submits, and how it looks to him."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.lab = user.lab
        self.work = user.work
        user.environ |= {"AEGIS_AGENT_POLICY": json.dumps(QUICK)}

    def deployment(self, name: str = "deployment.yaml", **keys: Any) -> str:
        """Write a deployment of simulated servers, one of which fills a node."""
        usual = {
            "model": "rehearsal-1B",
            "engine": "sim",
            "tensor_parallel_size": 4,
            "gpus_per_node": 4,
            "platform": "generic-slurm",
            "queue": "all",
            "mem_per_node": "1G",
            "walltime": "00:10:00",
            "startup_timeout": 60,
            "log_dir": "logs",
        }
        self.user.transport.write(str(self.work / name), yaml.safe_dump({**usual, **keys}))
        return name

    def aegis(self, *words: object, code: int | None = 0, **how: Any) -> Done:
        """Run a command on the login host."""
        return self.user.aegis(*words, code=code, **how)

    def submit(self, *words: object, **keys: Any) -> str:
        """Submit a deployment, and return the job's handle."""
        return self.aegis("submit", "--config", self.deployment(**keys), *words).out.strip()

    def serve(self, **keys: Any) -> tuple[str, list[str]]:
        """Submit a deployment and wait for it; return handle and endpoints."""
        done = self.aegis("submit", "--config", self.deployment(**keys), "--wait", timeout=120)
        return done.err.partition("submitted ")[2].split()[0], done.out.split()

    def view(self, handle: str) -> dict[str, Any]:
        """Return the job as `aegis status` shows it."""
        found: dict[str, Any] = json.loads(self.aegis("status", handle, "--json").out)
        return found

    def all(self) -> list[dict[str, Any]]:
        """Return all jobs as `aegis status` shows them."""
        found: list[dict[str, Any]] = json.loads(self.aegis("status", "--json", "--all").out)
        return found

    def wait_for(self, handle: str, status: str, words: str = "", seconds: float = 60.0) -> dict[str, Any]:
        """Return the job when it has a status, and some words in its reason."""

        def seen() -> dict[str, Any] | None:
            view = self.view(handle)
            return view if view["model_status"] == status and words in view["reason"] else None

        try:
            found: dict[str, Any] = wait_until(seen, f"{handle} {status} {words}", seconds)
        except BaseException:
            print(self.view(handle))  # noqa: T201 - what it is instead
            raise
        return found

    def services(self, handle: str) -> dict[str, str]:
        """Return the state of each server."""
        return {each["service_id"]: each["status"] for each in self.view(handle)["services"]}

    def answers(self, endpoint: str) -> bool:
        """Tell whether a server answers a chat request from the login host."""
        words = ["-sSf", "--max-time", "10", "-H", "Content-Type: application/json", "-d", json.dumps(CHAT)]
        done = self.user.run("curl", *words, f"http://{endpoint}/v1/chat/completions", code=None)
        return done.code == 0 and bool(json.loads(done.out)["choices"])

    def processes(self, node: str) -> list[str]:
        """Return this user's servers on a node."""
        done = self.lab.run("pgrep", "-u", self.user.name, "-af", "aegis sim", host=node, code=None)
        return done.out.splitlines()

    def kill_server(self, node: str) -> None:
        """Kill the server of a node, by its pid."""
        pid = self.processes(node)[0].split()[0]
        self.lab.run("kill", "-9", pid, host=node)
