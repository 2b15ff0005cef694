"""`aegis scale`: servers are added beside those that run, and leave when nobody waits for them."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Self

import pytest
import yaml

from aegis.api.targets import Targets
from aegis.registry.client import RegistryClient
from tests.ports import free_port

from .conftest import request, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
CLIENTS = 4
BODY = {"model": "rehearsal-1B", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
NAMES = [f"rehearsal-1B-{number}" for number in range(3)]


class Load:
    """Clients that follow the registry, and ask whoever is in the rotation."""

    def __init__(self, job: Job) -> None:
        self.targets = Targets.from_registry(RegistryClient(f"http://{job.registry}"))
        self.answered: dict[str, int] = {}
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        self.targets.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.targets.__exit__()

    def _run(self, number: int) -> None:
        while not self._ended.is_set():
            number += 1
            now = self.targets.now()[1]
            target = now[number % len(now)]
            code, text = request(target.address, "POST", "/v1/chat/completions", BODY)
            if code == 200:
                self.answered[target.instance] = self.answered.get(target.instance, 0) + 1
            else:
                self.failed.append(f"{target.instance}: {code} {text}")


def test_one_to_three_to_one_under_load_and_no_request_fails(lab: Lab) -> None:
    job = lab.submit(extra_sim_args=["--itl-ms", "20"])
    pid = job.engine(NAMES[0]).pid
    with Load(job) as load:
        wait_until(lambda: load.answered.get(NAMES[0], 0) > CLIENTS)
        more = lab.aegis("scale", job.handle, "--instances", 3, "--wait")
        assert len(more.out.split()) == 3
        wait_until(lambda: all(load.answered.get(name) for name in NAMES), "all three answer")
        wait_until(lambda: len(job.endpoints) == 3)
        assert job.status()["instances"] == 3
        said = json.loads(lab.aegis("scale", job.handle, "--instances", 1, "--wait", "--json").out)
        assert said["leaving"] == NAMES[1:]
        wait_until(lambda: job.states() == {NAMES[0]: "healthy"}, "the others are gone")
        before = load.answered[NAMES[0]]
        wait_until(lambda: load.answered[NAMES[0]] > before + CLIENTS, "the one that is left answers")
    assert load.failed == []
    assert job.engine(NAMES[0]).pid == pid
    assert len(job.endpoints) == job.manifest["instances"] == 1
    assert len(job.find(" sim ")) == 0
    assert lab.aegis("scale", job.handle, "--instances", 0, code=2).err.count("--force") == 1
    lab.aegis("scale", job.handle, "--instances", 0, "--force")
    wait_until(lambda: job.manifest["state"] == "SHUTDOWN", "a job that serves nothing ends")
    assert "has ended" in lab.aegis("scale", job.handle, "--instances", 1, code=3).err


def test_what_does_not_fit_goes_into_a_further_job_of_the_same_service(lab: Lab) -> None:
    profile = {"name": "cluster", "extends": "local", "nodes": 1, "node": {"devices": 2}}
    (lab.work / "cluster.yaml").write_text(yaml.safe_dump(profile))
    job = lab.submit(
        platform="cluster.yaml",
        service="pool",
        tensor_parallel_size=2,
        port_start=free_port(),
        registry_port=free_port(),
    )
    said = lab.aegis("scale", job.handle, "--instances", 2, code=2).err
    assert "1 more instance takes 2 devices" in said
    assert "--new-job" in said
    said = lab.aegis("scale", job.handle, "--instances", 2, "--new-job", "--wait").err
    further = lab.job(said.partition("submitted ")[2].split()[0])
    assert further.manifest["service"] == "pool"
    assert further.manifest["instances"] == 1
    assert further.endpoints_file.parent == further.run_dir
    assert not set(further.endpoints) & set(job.endpoints)
    assert "none is missing" in lab.aegis("scale", job.handle, "--instances", 2, "--new-job", code=2).err
