"""A service on this machine that outlives its jobs: one hands over to the next while requests run."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]
STREAMS = 3
QUESTION = {
    "model": "rehearsal-1B",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 20,
    "stream": True,
}


class Load:
    """Clients that stream one answer after the other, until they are told to end."""

    def __init__(self, address: Callable[[], str]) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._address = address
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(STREAMS)]
        for each in self._threads:
            each.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            address = ""
            try:
                address = self._address()
                text = stream(address)
            except (OSError, IndexError, http.client.HTTPException) as error:
                self.failures.append(f"{address}: {error!r}")
                continue
            if text.rstrip().endswith("data: [DONE]"):
                self.answered += 1
            else:
                self.failures.append(f"{address}: {text[-200:]}")

    def end(self) -> None:
        self._ended.set()
        for each in self._threads:
            each.join()


def stream(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(QUESTION), {"Content-Type": "application/json"}
        )
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def jobs(lab: Lab) -> list[dict[str, Any]]:
    """Return the jobs as `aegis status` shows them, oldest first."""
    found: list[dict[str, Any]] = json.loads(lab.aegis("status", "--json", "--all").out)
    return found


def keep_alive(lab: Lab, **keys: Any) -> Job:
    lab.policy(retire_least=1.0, successor_look=0.5)
    usual = {
        "keep_alive": True,
        "service": "chat",
        "walltime": "00:00:40",
        "overlap": "00:00:38",
        "extra_sim_args": ["--itl-ms", "40"],
    }
    return lab.submit(**{**usual, **keys})


def test_two_hand_overs_lose_no_request(lab: Lab) -> None:
    first = keep_alive(lab, until="1-00:00:00")
    file, port = first.endpoints_file, lab.path / "port"
    lab.start("gateway", "chat", "--host", "127.0.0.1", "--port", 0, "--port-file", port)
    wait_until(port.exists, "the gateway listens")
    gateway = f"127.0.0.1:{port.read_text().strip()}"
    loads = [Load(lambda: file.read_text().split()[0]), Load(lambda: gateway)]
    try:
        ended = wait_until(lambda: [each for each in jobs(lab) if each["final"]][1:], "two hand-overs", 60)
        before = [load.answered for load in loads]
        wait_until(
            lambda: all(load.answered > count for load, count in zip(loads, before, strict=True)),
            "the third job answers",
        )
    finally:
        for load in loads:
            load.end()
    assert [load.failures for load in loads] == [[], []]
    assert len(ended) == 1
    one, two, three = jobs(lab)[:3]
    assert (one["model_status"], one["reason"]) == ("SHUTDOWN", f"handed over to {two['job_id']}")
    assert (two["model_status"], two["reason"]) == ("SHUTDOWN", f"handed over to {three['job_id']}")
    assert {each["service"] for each in (one, two, three)} == {"chat"}
    assert [two["predecessor"], one["successor"]] == [one["job_id"], two["job_id"]]
    current = json.loads(lab.aegis("status", "chat", "--json").out)
    assert current["model_status"] == "READY"
    assert lab.aegis("wait", "chat").out.split() == file.read_text().split()
    refused = lab.aegis(
        "submit", "--config", lab.deployment(service="chat", keep_alive=True, walltime="00:01:00"), code=2
    )
    assert "the service `chat` is there already" in refused.err
    lab.aegis("shutdown", "chat")
    wait_until(lambda: all(each["final"] for each in jobs(lab)), "every job of the service has ended")
    assert not file.exists()


def test_starts_that_fail_are_not_repeated_for_ever_and_the_old_job_serves_on(lab: Lab) -> None:
    (lab.work / "served").mkdir()
    first = keep_alive(lab, endpoints_file="served/endpoints.txt", overlap="00:00:40", walltime="00:00:42")
    kept = first.endpoints[0]
    shutil.rmtree(lab.work / "served")
    wait_until(lambda: "3 starts in a row failed" in first.manifest["reason"], "it is given up", 60)
    found = jobs(lab)
    assert [each["model_status"] for each in found] == ["READY", "FAILED", "FAILED", "FAILED"]
    assert "the folder of the endpoints file is not there" in first.status()["reason"]
    assert stream(kept).rstrip().endswith("[DONE]")
    lab.aegis("shutdown", "chat")


def test_a_launch_by_hand_cannot_be_kept_alive(lab: Lab) -> None:
    refused = lab.aegis("launch", "--config", lab.deployment(keep_alive=True, walltime="00:01:00"), code=2)
    assert "aegis submit --keep-alive" in refused.err
