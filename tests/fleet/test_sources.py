"""Which registries a name means, now and later, and the ways to servers behind ssh."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, cast

import pytest

from aegis.errors import NotFoundError, SiteError
from aegis.fleet import sources as module
from aegis.fleet import ways as way_module
from aegis.fleet.sources import JobSources, choose, way_to_job
from aegis.fleet.ways import Ways
from aegis.registry.sources import directly
from aegis.runs import Manifest
from aegis.schedulers.base import JobStatus
from aegis.schedulers.transport import Here
from tests.fleet.jobs_site import RUNNING, Servers, Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegis.registry.sources import Address
    from aegis.schedulers.ssh import Ssh

HOSTILE = "chat; $(touch x) 'y'\n"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def running(site: Site, handle: str, port: int = 8471, **fields: object) -> Manifest:
    known = {"state": "READY", "registry_url": f"http://node1:{port}", **fields}
    return site.job(handle, RUNNING, **known)


def found(site: Site, *names: str) -> list[str]:
    return sorted(each.name for each in JobSources([site.jobs()], names).look())


def test_a_job_is_meant_by_its_handle_its_name_or_its_service(site: Site) -> None:
    running(site, "slurm://11", service="chat")
    running(site, "slurm://12", service=HOSTILE)
    running(site, "slurm://13", name="other")
    running(site, "pbs://7.server", service="chat")
    assert found(site, "slurm://11") == ["11"]
    assert found(site, "12", "13") == ["12", "13"]
    assert found(site, "other") == ["13"]
    assert found(site, "chat") == ["11", "7.server"]
    assert found(site, HOSTILE) == ["12"]
    assert found(site, "jobs") == ["11", "12", "13", "7.server"]


def test_who_takes_over_is_meant_too(site: Site) -> None:
    running(site, "slurm://11")
    running(site, "slurm://12", predecessor="slurm://11", created=2e9)
    running(site, "slurm://13", predecessor="slurm://12", created=2.1e9)
    running(site, "slurm://14", predecessor="slurm://10", created=2.2e9)
    assert found(site, "11") == ["11", "12", "13"]
    (first, second, *_) = JobSources([site.jobs()], ["11"]).look()
    assert (first.prefix, second.prefix) == ("", "12/"), "their instances may have the same names"
    assert all(each.prefix for each in JobSources([site.jobs()], ["n"]).look())


def test_jobs_that_wait_or_have_ended_are_no_sources(site: Site) -> None:
    running(site, "slurm://11", service="s", state="SHUTDOWN")
    running(site, "slurm://12", service="s", registry_url=None)
    running(site, "slurm://13", service="s")
    site.slurm.answers["slurm://13"] = JobStatus(state="FAILED", word="NODE_FAIL")
    running(site, "slurm://14", service="s")
    assert found(site, "s") == ["14"]
    site.slurm.down = "slurmctld is away"
    assert found(site, "s") == ["14"], "what its scheduler said last is noted"


def test_what_nobody_has_heard_of_is_refused_once(site: Site) -> None:
    running(site, "slurm://11", service="chatter")
    sources = JobSources([site.jobs()], ["chater", "11"])
    with pytest.raises(NotFoundError, match="there is no job and no service `chater`") as caught:
        sources.look()
    assert "chatter" in (caught.value.hint or "")
    sources = JobSources([site.jobs()], ["chatter"])
    assert len(sources.look()) == 1
    site.note("slurm://11", state="SHUTDOWN")
    assert sources.look() == [], "it is known, and waits for the next"
    running(site, "slurm://12", service="chatter")
    assert [each.name for each in sources.look()] == ["12"]


def test_an_index_that_rests_is_not_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    running(site, "slurm://11", service="s")
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    jobs = site.jobs()
    sources = JobSources([jobs], ["s"])
    assert [each.at for each in sources.look()] == ["http://node1:8471"]
    monkeypatch.setattr(jobs, "all", lambda: pytest.fail("read again"))
    site.note("slurm://11", registry_url="http://node1:8472")
    assert [each.at for each in sources.look()] == ["http://node1:8472"], "the job has begun anew"
    monkeypatch.undo()
    running(site, "slurm://12", service="s")
    assert [each.name for each in sources.look()] == ["11", "12"]


def test_several_places_keep_their_jobs_apart(site: Site, tmp_path: Path) -> None:
    class Far(Here):
        name = "me@other"

    there = Site(tmp_path / "there")
    for one in (site, there):
        running(one, "slurm://11", service="s")
    far = there.jobs()
    far.transport = Far(there.environ)
    names = [each.name for each in JobSources([site.jobs(), far], ["s"]).look()]
    assert names == ["11@this machine", "11@other"]


def test_the_way_to_a_job(site: Site, servers: Servers) -> None:
    manifest = running(site, "slurm://11", registry_url=servers.url)
    site.run("slurm://11").token.write_text("secret\n")
    with way_to_job(site.jobs().transport, manifest) as way:
        assert [each.service_id for each in way.client.services()] == ["m-0"]
        assert way.reach is directly


def test_servers_that_only_another_machine_reaches(site: Site, servers: Servers) -> None:
    transport = site.jobs().transport
    far = running(site, "local://a", registry_url=servers.url, host="node9")
    with pytest.raises(SiteError, match="reached from node9 alone") as caught, way_to_job(transport, far):
        pass
    assert caught.value.hint == "--remote node9"
    near = running(site, "local://b", registry_url=servers.url, host=os.uname().nodename)
    with way_to_job(transport, near):
        pass


def test_choosing_is_by_any_name() -> None:
    def job(number: int, **fields: str) -> Manifest:
        return Manifest(job=f"slurm://{number}", name="n", models=[], run_dir="", **fields)  # type: ignore[arg-type]

    jobs = [job(1, service="s"), job(2), job(3, predecessor="slurm://2")]
    assert [each.job for each in choose(jobs, ["s", "2"])] == ["slurm://1", "slurm://2", "slurm://3"]
    assert choose(jobs, [""]) == choose(jobs, []) == []


class FakeSsh:
    """A connection that forwards to ports counted from 1."""

    name = "me@login"

    def __init__(self) -> None:
        self.connection = object()
        self.is_alive = True
        self.open: set[Address] = set()
        self.opened = 0

    @contextlib.contextmanager
    def forward(self, host: str, port: int) -> Iterator[Address]:
        if " " in host:
            raise SiteError(f"{host!r} is no host")
        self.opened += 1
        self.open.add((host, port))
        yield "127.0.0.1", self.opened
        self.open.discard((host, port))


def test_ways_are_opened_once_and_closed_when_nobody_has_wanted_them_for_long() -> None:
    ssh, now = FakeSsh(), [0.0]
    ways = Ways(cast("Ssh", ssh), lambda: now[0])
    a, b = ("n1", 80), ("n2", 80)
    first = ways.reach([a, b, a])
    assert sorted(first.values()) == [("127.0.0.1", 1), ("127.0.0.1", 2)]
    assert ways.reach([a]) == {a: first[a]}
    assert ssh.open == {a, b}, "its running answers still come through it"
    now[0] = way_module.LINGER_SECONDS + 1
    assert ways.reach([a]) == {a: first[a]}
    assert ssh.open == {a}
    assert ways.reach([("a b", 80), a]) == {a: first[a]}, "what is no host is left out"
    ways.close()
    assert ssh.open == set()


def test_ways_end_with_their_connection() -> None:
    ssh = FakeSsh()
    ways = Ways(cast("Ssh", ssh))
    ways.reach([("n1", 80)])
    ssh.is_alive = False
    with pytest.raises(SiteError, match="the connection to me@login was cut"):
        ways.reach([("n1", 80)])
    ssh.is_alive, ssh.connection = True, object()
    with pytest.raises(SiteError, match="was cut"):
        ways.reach([("n1", 80)])
