"""Views of jobs: schedulers asked once, servers at once, hung ones not waited for, ended jobs tidied up."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from aegis.fleet.tunnel import find_server
from aegis.registry.model import Service
from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegis.fleet.status import JobView
    from aegis.registry.model import Status

ONE = "slurm://1"
FAILED = JobStatus(state="FAILED", word="FAILED", exit_code=1, reason="ended with exit code 1", ended=90.0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def view(site: Site, handle: str = ONE) -> JobView:
    jobs = site.jobs()
    (found,) = jobs.views([jobs.find(handle)])
    return found


def test_a_waiting_job(site: Site) -> None:
    site.job(ONE, JobStatus(state="PENDING", reason="waits for free nodes", restarts=1))
    said = view(site)
    assert (said.model_status, said.pending_reason, said.base_url) == (
        "PENDING",
        "waits for free nodes",
        None,
    )
    assert (said.failed_reason, said.time_left, said.restarts) == (None, None, 1)
    assert said.age == pytest.approx(3600, abs=5)


def test_a_job_that_serves(site: Site, servers: Servers) -> None:
    status = JobStatus(state="LAUNCHING", nodes="node[1-2]", started=time.time() - 60, walltime=3600)
    site.job(ONE, status, state="READY", ready=1.0, instances=1, registry_url=servers.url)
    said = view(site)
    assert (said.model_status, said.base_url) == ("READY", f"http://{servers.address}/v1")
    assert (said.healthy, said.node_list, [each.service_id for each in said.services]) == (
        1,
        "node[1-2]",
        ["m-0"],
    )
    assert said.time_left == pytest.approx(3540, abs=5)
    assert not said.final


def gateway(position: int, status: Status, job: str = ONE) -> Service:
    return Service(
        service_id=f"gateway-{position}",
        host="node1",
        port=8080 + position,
        service_type="gateway",
        status=status,
        last_seen=time.time(),
        metadata={"job": job, "node": "node1", "position": position, "reason": "broken"},
    )


def test_the_base_url_is_that_of_the_first_gateway_and_no_gateway_is_a_server(
    site: Site, servers: Servers
) -> None:
    servers.others = [gateway(1, "healthy"), gateway(0, "failed"), gateway(2, "healthy", "slurm://9")]
    site.job(ONE, RUNNING, state="READY", ready=1.0, instances=1, registry_url=servers.url)
    said = view(site)
    assert said.base_url == "http://node1:8081/v1"
    assert (said.healthy, [each.service_id for each in said.services]) == (1, ["m-0"])
    assert [each.service_id for each in said.gateways] == ["gateway-0", "gateway-1"]
    assert said.reason == ""  # a gateway that failed is no trouble of the servers
    servers.others = [gateway(0, "starting")]
    assert view(site).base_url == f"http://{servers.address}/v1"
    servers.states = {"m-0": "starting"}
    servers.others = [gateway(0, "healthy")]
    assert (view(site).model_status, view(site).base_url) == ("LAUNCHING", None)


def test_a_tunnel_leads_to_a_gateway_where_there_is_one(site: Site, servers: Servers) -> None:
    site.job(ONE, RUNNING, state="READY", ready=1.0, registry_url=servers.url)
    assert find_server(site.jobs(), ONE, None).name == "m-0"
    servers.others = [gateway(0, "failed"), gateway(1, "healthy")]
    found = find_server(site.jobs(), ONE, None)
    assert (found.name, found.address, found.node) == ("gateway-1", "node1:8081", "node1")
    assert find_server(site.jobs(), ONE, "m-0").address == servers.address


def test_where_the_registry_is_silent_the_gateways_are_those_it_named_last(
    site: Site, servers: Servers
) -> None:
    servers.registry_down = True
    site.job(ONE, RUNNING, state="READY", ready=1.0, registry_url=servers.url, gateways=["node1:8080"])
    (site.run(ONE).path / "endpoints").write_text(f"{servers.address}\n")
    assert view(site).base_url == "http://node1:8080/v1"


def test_failed_servers_are_told(site: Site, servers: Servers) -> None:
    servers.states = {"m-0": "failed", "m-1": "starting"}
    site.job(ONE, RUNNING, state="LAUNCHING", registry_url=servers.url)
    said = view(site)
    assert (said.model_status, said.reason) == ("LAUNCHING", "1 of 2 instances failed: m-0: out of memory")


def test_where_the_registry_is_silent_the_servers_are_asked(site: Site, servers: Servers) -> None:
    servers.registry_down = True
    manifest = site.job(ONE, RUNNING, state="READY", ready=1.0, registry_url=servers.url)
    endpoints = f"127.0.0.1:1\nnonsense\n{servers.address}\n"
    (site.run(ONE).path / "endpoints").write_text(endpoints)
    assert manifest.endpoints_file == str(site.run(ONE).path / "endpoints")
    said = view(site)
    assert (said.model_status, said.base_url) == ("READY", f"http://{servers.address}/v1")
    assert "the registry does not answer" in said.reason
    servers.healthy = False
    said = view(site)
    assert said.model_status == "LAUNCHING"
    assert said.reason.endswith("none of its servers answers")


def test_hung_servers_hold_nobody_up(site: Site, servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as hung:
        for number in range(20):
            url = f"http://127.0.0.1:{hung.getsockname()[1]}"
            site.job(f"slurm://{number}", RUNNING, state="LAUNCHING", registry_url=url)
        site.job("slurm://100", RUNNING, state="READY", ready=1.0, registry_url=servers.url)
        jobs = site.jobs()
        began = time.monotonic()
        found = jobs.views(jobs.all())
        assert time.monotonic() - began < 8
    assert [each.job_id for each in found if each.model_status == "READY"] == ["slurm://100"]
    assert len(site.slurm.asked) == 1


def test_a_job_that_is_seen_ended_is_tidied_up_once(site: Site) -> None:
    secret = site.folder / "secret"
    secret.touch()
    site.job(ONE, FAILED, state="LAUNCHING", secrets_file=str(secret))
    run = site.run(ONE)
    for file in (run.secrets, run.token, run.path / "endpoints"):
        file.touch()
    os.utime(run.path / "endpoints", (1, 1))
    said = view(site)
    assert (said.model_status, said.failed_reason, said.exit_code) == ("FAILED", "ended with exit code 1", 1)
    assert said.log == str(run.err)
    left = {file.name for file in run.path.iterdir()}
    assert left == {run.manifest.name, "instances", "nodes"}
    assert not secret.exists()
    noted = site.read(ONE)
    assert (noted.state, noted.accounted, noted.ended) == ("FAILED", True, 90.0)
    asked = len(site.slurm.asked)
    assert view(site).failed_reason == "ended with exit code 1"
    assert len(site.slurm.asked) == asked


def test_the_endpoints_of_a_later_job_stay(site: Site) -> None:
    site.job(ONE, FAILED, state="LAUNCHING")
    endpoints = site.run(ONE).path / "endpoints"
    endpoints.write_text("later:1\n")
    os.utime(endpoints, (time.time() + 9, time.time() + 9))
    assert view(site).model_status == "FAILED"
    assert endpoints.read_text() == "later:1\n"


def test_secrets_stay_while_another_component_may_need_them(site: Site) -> None:
    secret = site.folder / "secret"
    secret.touch()
    site.job("slurm://1+0", FAILED, secrets_file=str(secret))
    site.job("slurm://1+1", RUNNING, secrets_file=str(secret))
    view(site, "1+0")
    assert secret.exists()
    site.slurm.answers["slurm://1+1"] = FAILED
    view(site, "1+1")
    assert not secret.exists()


def test_hostile_paths_are_only_paths(site: Site) -> None:
    hostile = site.folder / "a b'c;$(touch X)\n-rf"
    hostile.touch()
    site.job(ONE, FAILED, secrets_file=str(hostile), models=["m"], endpoints_file="-rf *")
    view(site)
    assert not hostile.exists()
    assert not list(site.folder.rglob("X"))
    assert site.read(ONE).accounted


def test_the_scheduler_s_log_of_a_job_that_never_began(site: Site) -> None:
    log = site.folder / "slurm-1.out"
    log.write_text("slurmstepd: error: execve failed\n")
    site.job(ONE, JobStatus(state="FAILED", reason="launch failed", log=str(log)))
    assert view(site).log == str(log)
    assert view(site).log == str(log)


def test_a_job_that_only_waited_has_no_log_of_the_scheduler(site: Site) -> None:
    waits = JobStatus(state="PENDING", log="/home/me/slurm-1.out")
    site.job(ONE, waits)
    assert view(site).log == str(site.run(ONE).err)
    site.slurm.answers[ONE] = msgspec.structs.replace(waits, state="SHUTDOWN", reason="cancelled")
    for _ in range(2):
        assert (view(site).log, view(site).reason) == (str(site.run(ONE).err), "cancelled")


@pytest.mark.parametrize(
    ("said", "state", "reason"),
    [
        ("12:00 hello\nerror: no port\n hint: choose one\n", "PENDING", "no port\n hint: choose one"),
        ("12:00 hello\nerror: internal error\n", "READY", "internal error"),
        (
            "/opt/env/bin/python: not found\n",
            "PENDING",
            "ended with exit code 1: /opt/env/bin/python: not found",
        ),
        ("12:00 registry at node1\n", "LAUNCHING", "ended with exit code 1"),
        ("", "PENDING", "ended with exit code 1"),
    ],
)
def test_a_job_that_could_not_note_why_it_ended_is_judged_by_its_last_words(
    site: Site, said: str, state: str, reason: str
) -> None:
    site.job(ONE, msgspec.structs.replace(FAILED, nodes="node[1-2]"), state=state)
    site.run(ONE).err.write_text(said)
    for _ in range(2):  # seen ending, and looked up later
        seen = view(site)
        assert (seen.failed_reason, seen.exit_code, seen.node_list) == (reason, 1, "node[1-2]")
        assert seen.log == str(site.run(ONE).err)


def test_the_scheduler_s_log_speaks_where_a_job_has_none(site: Site) -> None:
    log = site.folder / "slurm.log"
    log.write_text("bash: line 7: /opt/env/bin/python: No such file\n")
    site.job(ONE, msgspec.structs.replace(FAILED, log=str(log)))
    seen = view(site)
    assert seen.reason.endswith("exit code 1: bash: line 7: /opt/env/bin/python: No such file")
    assert seen.log == str(log)


def test_who_ended_a_job_is_told_before_its_last_words(site: Site) -> None:
    site.job(ONE, JobStatus(state="FAILED", word="OUT_OF_MEMORY", reason="out of memory"), state="LAUNCHING")
    site.run(ONE).err.write_text("error: an engine ended\n")
    assert view(site).reason == "out of memory"


def test_a_silent_scheduler_makes_the_answer_old_and_not_wrong(site: Site, servers: Servers) -> None:
    site.job(ONE, RUNNING)
    site.job("slurm://2", RUNNING, state="READY", ready=1.0, registry_url=servers.url)
    assert view(site).model_status == "LAUNCHING"
    site.slurm.down = "slurmctld does not answer"
    said = view(site)
    assert said.model_status == "UNKNOWN"
    assert said.reason == "the scheduler does not answer; 0s ago it said: running"
    assert not said.final
    assert view(site, "slurm://2").model_status == "READY"
    assert not site.read(ONE).accounted


def test_a_job_that_vanished_has_failed(site: Site) -> None:
    site.job(ONE, state="LAUNCHING")
    said = view(site)
    assert said.model_status == "FAILED"
    assert "neither the queue nor the accounting" in said.reason
    assert site.read(ONE).state == "LAUNCHING"  # another cluster with the same home may know it


def test_two_schedulers_are_asked_once_each(site: Site) -> None:
    site.job(ONE, RUNNING)
    site.job("pbs://1.s", RUNNING)
    site.job("slurm://2", FAILED)
    jobs = site.jobs()
    found = jobs.views(jobs.all())
    assert sorted(each.model_status for each in found) == ["FAILED", "LAUNCHING", "LAUNCHING"]
    assert len(site.slurm.asked) == len(site.pbs.asked) == 1


def test_a_manifest_that_cannot_be_written_is_no_hindrance(site: Site) -> None:
    site.job(ONE, FAILED)
    content = json.loads(site.run(ONE).manifest.read_text())
    content["run_dir"] = "/proc/none"
    site.run(ONE).manifest.write_text(json.dumps(content))
    assert view(site).model_status == "FAILED"
