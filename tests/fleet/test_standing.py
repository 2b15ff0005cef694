"""What a job's head tells the registry of its job."""

from __future__ import annotations

import time

import pytest

from aegis.errors import RegistryUnreachable
from aegis.fleet.inside import Walltime
from aegis.fleet.standing import Standing
from aegis.registry.client import RegistryClient
from aegis.registry.model import Acknowledgement, Push
from aegis.runs import Manifest


class Registry(RegistryClient):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("http://localhost:1")
        self.pushes: list[Push] = []
        self.is_away = False

    def push(self, push: Push) -> Acknowledgement:
        if self.is_away:
            raise RegistryUnreachable("away")
        self.pushes.append(push)
        return Acknowledgement()


def manifest() -> Manifest:
    return Manifest(job="slurm://12", name="m", models=["m"], run_dir="/r", host="h", nodes=3, service="chat")


@pytest.fixture
def registry() -> Registry:
    return Registry()


def standing(registry: Registry, known: Manifest, limit: int | None = 600) -> Standing:
    return Standing(registry, known, Walltime(limit, {}, local=True))


def test_the_entry_serves_nobody_and_says_what_the_manifest_says(registry: Registry) -> None:
    known = manifest()
    before = time.time()
    standing(registry, known).tell()
    (report,) = registry.pushes[0].services
    assert registry.pushes[0].node == report.service_id == "job-slurm-12"
    assert (report.service_type, report.status, report.port) == ("job", "pending", 0)
    facts = report.metadata
    assert (facts["handle"], facts["service"], facts["nodes"], facts["state"]) == (
        "slurm://12",
        "chat",
        3,
        "PENDING",
    )
    assert before + 590 <= facts["walltime_end"] <= time.time() + 600
    assert facts["walltime_end"] - facts["started"] == pytest.approx(600)


def test_it_is_told_when_something_changed(registry: Registry) -> None:
    known = manifest()
    job = standing(registry, known, limit=None)
    for _ in range(3):
        job.tell()
    assert len(registry.pushes) == 1
    known.state, known.gateways, known.successor = "READY", ["h:1"], "slurm://13"
    job.tell()
    facts = registry.pushes[1].services[0].metadata
    assert (facts["state"], facts["gateways"], facts["successor"]) == ("READY", ["h:1"], "slurm://13")
    assert facts["walltime_end"] is None
    job.end()
    assert registry.pushes[2].services == ()


def test_a_registry_that_is_away_is_told_when_it_is_back(registry: Registry) -> None:
    job = standing(registry, manifest())
    registry.is_away = True
    job.tell()
    registry.is_away = False
    job.tell()
    assert len(registry.pushes) == 1
