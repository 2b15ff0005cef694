"""Several deployments on one machine, and ports that others hold."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

from .conftest import MARK, chat, request, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]


@pytest.fixture
def stranger(lab: Lab) -> Iterator[int]:
    """A port that a process of no job holds."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    assert MARK not in command
    try:
        wait_until(lambda: request(f"127.0.0.1:{port}", "GET", "/")[0], "the stranger listens")
        yield port
    finally:
        process.kill()
        process.wait()


def test_two_deployments_with_default_ports(lab: Lab) -> None:
    one = lab.submit(instances=2, endpoints_file="one.txt")
    two = lab.submit(instances=2, endpoints_file="two.txt")
    assert len({*one.endpoints, *two.endpoints}) == 4
    assert one.registry != two.registry
    for job in (one, two):
        assert {f"{each['host']}:{each['port']}" for each in job.services.values()} == set(job.endpoints)
        assert {each["metadata"]["job"] for each in job.services.values()} == {job.handle}
    lab.aegis("shutdown", "--endpoints-file", "one.txt")
    assert one.find() == []
    assert two.status()["model_status"] == "READY"
    assert set(two.states().values()) == {"healthy"}
    assert chat(two.endpoints[0], "rehearsal-1B")["choices"]


def test_two_deployments_started_in_the_same_moment(lab: Lab) -> None:
    config = lab.deployment(instances=2)
    submits = [
        lab.start("submit", "--wait", "--config", config, "--endpoints-file", f"{n}.txt") for n in range(2)
    ]
    for submit in submits:
        assert submit.wait(60) == 0, lab.output(submit).err
        lab.job(lab.output(submit).err.partition("submitted ")[2].split()[0])
    assert len({line for submit in submits for line in lab.output(submit).out.split()}) == 4


def test_one_endpoints_file_for_two_jobs_is_refused(lab: Lab) -> None:
    job = lab.submit()
    endpoints = job.endpoints
    for command in ("launch", "submit"):
        said = lab.aegis(command, "--config", lab.deployment(), code=2)
        assert said.err.splitlines()[-2].startswith(
            f"error: {job.endpoints_file} is the endpoints file of {job.handle}"
        )
    assert job.endpoints == endpoints
    assert len(json.loads(lab.aegis("status", "--json").out)) == 1


def test_a_taken_port_is_named_with_its_owner(lab: Lab, stranger: int) -> None:
    said = lab.aegis("launch", "--config", lab.deployment(), "--port-start", stranger, code=1)
    error = said.err.partition("error: ")[2]
    assert f"port is taken: {stranger} on 127.0.0.1 by pid " in error
    assert "-m http.server" in error


def test_default_ports_move_on_from_taken_ones(lab: Lab) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 8000))
            other.listen()
        except OSError:
            pass  # somebody else holds it: as good
        job = lab.submit()
        assert not job.endpoints[0].endswith(":8000")


def test_a_taken_registry_port_is_a_fault_of_the_site(lab: Lab, stranger: int) -> None:
    said = lab.aegis("launch", "--config", lab.deployment(), "--registry-port", stranger, code=3)
    assert f"error: the registry does not start on port {stranger}" in said.err
    assert "taken" in said.err
    assert " hint: choose another port with --registry-port" in said.err


def test_the_registry_port_is_the_one_that_was_asked_for(lab: Lab) -> None:
    port = free_port()
    assert lab.submit("--registry-port", port).registry == f"127.0.0.1:{port}"


def test_shutdown_leaves_strangers_alone(lab: Lab, stranger: int) -> None:
    job = lab.submit()
    lab.aegis("shutdown", job.handle)
    assert request(f"127.0.0.1:{stranger}", "GET", "/")[0] == 200
