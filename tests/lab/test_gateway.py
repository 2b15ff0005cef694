"""A gateway and a federated registry over two jobs of one service, one of which ends."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Self

import pytest

from tests.ports import free_port

from .conftest import request, wait_until

if TYPE_CHECKING:
    from subprocess import Popen

    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
MODEL = "rehearsal-1B"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def url(lab: Lab, process: Popen[str]) -> str:
    """Return HOST:PORT of a gateway, once it listens."""

    def printed() -> str:
        assert process.poll() is None, lab.output(process).err
        return lab.output(process).out.partition("\n")[0]

    return str(wait_until(printed, "it listens")).removeprefix("http://").removesuffix("/v1")


class Asking:
    """Clients that ask one after the other until they are told to end."""

    def __init__(self, address: str, clients: int = 2) -> None:
        self.address, self.answers, self.over = address, list[tuple[int, str]](), threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        while not self.over.is_set():
            self.answers.append(request(self.address, "POST", "/v1/chat/completions", BODY))

    def go_on(self) -> None:
        """Return when some more were answered."""
        more = len(self.answers) + 20
        wait_until(lambda: len(self.answers) >= more, "requests are answered")

    def failed(self) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if answer[0] != 200]


def test_jobs_of_one_service_are_one(lab: Lab) -> None:
    def job(name: str) -> Job:
        return lab.submit(service="chat", name=f"{name}.yaml", endpoints_file=f"{name}.txt")

    first, second = job("first"), job("second")
    port = free_port()
    lab.start("registry", "serve", "--host", "127.0.0.1", "--port", port, "--federate", "jobs")

    def listed() -> list[str]:
        code, text = request(f"127.0.0.1:{port}", "GET", "/services")
        shown = json.loads(text) if code == 200 else []
        return sorted(each["service_id"] for each in shown if each["service_type"] == "sim")

    wait_until(
        lambda: listed() == sorted(f"{each.id}/{MODEL}-0" for each in (first, second)), "both are seen"
    )
    assert lab.aegis("registry", "list", "--registry-port", port).out.count(f"/{MODEL}-0 ") == 2
    by_name = lab.start("gateway", "chat", "--host", "127.0.0.1", "--port", "0")
    by_registry = lab.start("gateway", "--registry-port", port, "--host", "127.0.0.1", "--port", "0")
    with Asking(url(lab, by_name)) as one, Asking(url(lab, by_registry)) as other:
        for each in (one, other):
            each.go_on()
        lab.aegis("shutdown", second.handle)
        for each in (one, other):
            each.go_on()
        wait_until(lambda: listed() == [f"{first.id}/{MODEL}-0"], "it is gone")
        third = job("third")
        lab.aegis("shutdown", first.handle)
        for each in (one, other):
            each.go_on()
    assert (one.failed(), other.failed()) == ([], [])
    wait_until(lambda: listed() == [f"{third.id}/{MODEL}-0"], "the last one is left")
    by_name.terminate()
    assert by_name.wait(20) == 0
    answer = lab.output(by_name)
    assert answer.out.count("\n") == 1
    assert "2 servers of rehearsal-1B" in answer.err
