"""The jobs of a login node, seen from a laptop: found, shown, waited for, read and ended through one connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from aegis.fleet.jobs import Jobs
from aegis.fleet.stop import Wish, stop
from aegis.fleet.wait import wait_for
from aegis.runs import Manifest
from aegis.schedulers.base import JobStatus
from aegis.schedulers.ssh import connect
from tests.fleet.jobs_site import QUICK, RUNNING, Fake, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegis.schedulers.ssh import Ssh

    from .sshd import Sshd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]
ONE = "slurm://1"
FAILED = JobStatus(state="FAILED", word="NODE_FAIL", reason="a node failed")


class There:
    """A home over there with a job in it."""

    def __init__(self, far: Ssh, laptop: Path) -> None:
        self.far = far
        self.slurm = Fake()
        self.jobs = Jobs({"HOME": str(laptop)}, far, policy=QUICK, schedulers={"slurm": self.slurm})
        self.secret = f"{far.home()}/secret file"
        far.write(self.secret, "hf_x", 0o600)
        self.folder = f"{far.home()}/logs/m's $(x)/m.1"
        self.manifest = Manifest(
            job=ONE,
            name="n",
            models=["m"],
            run_dir=self.folder,
            created=time.time() - 600,
            endpoints_file=f"{self.folder}/endpoints",
            secrets_file=self.secret,
            instances=1,
        )
        self.note()
        index = f"{far.home()}/.local/state/aegis/jobs"
        far.run(["mkdir", "-p", index])
        far.run(["ln", "-s", "--", self.folder, f"{index}/slurm:1"])

    def note(self, **fields: object) -> None:
        self.manifest = msgspec.structs.replace(self.manifest, **fields)
        self.far.write(f"{self.folder}/m.1.json", msgspec.json.encode(self.manifest).decode())


@pytest.fixture
def there(sshd: Sshd, tmp_path: Path) -> Iterator[There]:
    sshd.start()
    with connect(sshd.target, print) as far:
        yield There(far, tmp_path)


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def test_a_job_is_followed_from_the_queue_to_its_end(there: There, servers: Servers, tmp_path: Path) -> None:
    there.slurm.answers[ONE] = JobStatus(state="PENDING", reason="waits for free nodes")
    assert [each.job for each in there.jobs.all()] == [ONE]
    (view,) = there.jobs.views(there.jobs.find_all("1"))
    assert (view.model_status, view.pending_reason) == ("PENDING", "waits for free nodes")
    assert (tmp_path / ".local/state/aegis/answers.slurm@alice-cluster.json").is_file()

    there.slurm.answers[ONE] = RUNNING
    there.far.write(f"{there.folder}/m.1.err", "m-0 healthy\n")
    there.far.write(f"{there.folder}/endpoints", f"{servers.address}\n")
    there.note(state="READY", ready=time.time(), settled=True, registry_url=servers.url)
    said: list[str] = []
    outcome = wait_for(there.jobs, "1", "ready", said.append, 20)
    assert outcome.endpoints == (servers.address,)
    assert said[0] == "m-0 healthy"
    (view,) = there.jobs.views(there.jobs.find_all("1"))
    assert (view.model_status, view.healthy) == ("READY", 1)

    there.far.write(f"{there.folder}/registry.token", "t0ken\n", 0o600)
    servers.on_stop = lambda: there.slurm.answers.update(
        {ONE: JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)}
    )
    stop(there.jobs, there.jobs.find_all("1"), said.append, Wish(timeout=10))
    assert servers.posts == ["/services/m-0/drain", "/stop"]
    assert said[-1] == "slurm://1 is shut down"


def test_the_end_of_a_job_is_noted_over_there(there: There) -> None:
    there.slurm.answers[ONE] = FAILED
    there.note(state="LAUNCHING")
    for name in ("secrets", "registry.token"):
        there.far.write(f"{there.folder}/{name}", "x", 0o600)
    there.far.write(f"{there.folder}/endpoints", "dead:1\n")
    there.note()
    (view,) = there.jobs.views(there.jobs.find_all(ONE))
    assert (view.model_status, view.failed_reason) == ("FAILED", "a node failed")
    left = there.far.run(["ls", "-A", there.folder]).out.split()
    assert left == ["m.1.json"]
    with pytest.raises(FileNotFoundError):
        there.far.read(there.secret)
    noted = there.jobs.find("1")
    assert (noted.state, noted.accounted) == ("FAILED", True)
    asked = len(there.slurm.asked)
    there.jobs.views([noted])
    assert len(there.slurm.asked) == asked
