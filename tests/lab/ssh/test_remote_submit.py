"""From a laptop with a one-time code to servers on the nodes of a PBS, and back."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import Lab, chat, wait_until
from tests.lab.pbs.conftest import PbsLab
from tests.lab.ssh.sshd import Sshd
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
SECRET = "hf_secret_of_nobody"
CUT = "the connection to alice@cluster was cut; opening it again"


@pytest.fixture
def site(tmp_path: Path, can_start_sshd: None, own_environment: None) -> Iterator[PbsLab]:
    """A PBS whose user greets whoever logs in."""
    made = PbsLab(tmp_path / "site")
    profile = made.home / ".bash_profile"
    profile.write_text(
        f"echo Welcome; {profile.read_text()}PATH={Path(sys.executable).parent}:$PATH\nexport PATH\n"
    )
    (made.home / ".bashrc").write_text("echo 'Your quota is fine.'\n")
    made.up()
    yield made
    made.end_jobs()
    made.lab.close()
    made.close()


@pytest.fixture
def login(site: PbsLab) -> Iterator[Sshd]:
    """Its login node. The account is one that may run the Python of these tests, wherever that lies."""
    folder = Path(tempfile.mkdtemp(prefix="aegis-sshd-"))
    made = Sshd(folder, uid=0, home=site.home, port=free_port())
    try:
        made.start()
        yield made
        wait_until(lambda: not made.clients(), "every ssh has ended")
    finally:
        made.stop()
        shutil.rmtree(folder)


@pytest.fixture
def laptop(tmp_path: Path, site: PbsLab, login: Sshd) -> Iterator[Lab]:
    """A machine without a scheduler, from which `ssh cluster` asks for a code."""
    made = Lab(tmp_path / "laptop", f"{tmp_path.name}-laptop-{os.getpid()}")
    private = login.folder / "tmp"
    private.mkdir()
    made.environ |= {**login.askpass, "PATH": login.path, "TMPDIR": str(private)}
    yield made
    made.close()
    wait_until(lambda: not list(private.iterdir()), "no socket stays")


def submit(laptop: Lab, site: PbsLab, *args: str) -> list[str]:
    config = laptop.deployment(
        platform=str(site.profile("lab-pbs.yaml")),
        instances=2,
        tensor_parallel_size=4,
        walltime="00:10:00",
        endpoints_file="endpoints.txt",
        account="science",
    )
    return ["submit", "--config", str(config), "--remote", "alice@cluster", *args]


def test_from_a_laptop_to_servers_and_back(laptop: Lab, site: PbsLab, login: Sshd) -> None:
    laptop.environ["HF_TOKEN"] = SECRET
    answer = laptop.aegis(*submit(laptop, site, "--wait"))
    endpoints = answer.out.split()
    assert len(endpoints) == 2
    assert (laptop.work / "endpoints.txt").read_text().split() == endpoints
    assert (site.home / "endpoints.txt").read_text().split() == endpoints
    handle = answer.err.partition("submitted ")[2].split()[0]
    assert handle.startswith("pbs://1025")
    assert "Welcome" not in answer.out + answer.err
    assert SECRET not in answer.out + answer.err
    assert login.logins == len(login.prompts) == 1

    tunnel = laptop.start("tunnel", handle, "--remote", "alice@cluster")
    address = str(wait_until(lambda: laptop.output(tunnel).out)).strip()
    assert chat(address.removeprefix("http://").removesuffix("/v1"), "rehearsal-1B")["choices"]
    tunnel.terminate()
    assert tunnel.wait(20) == 0

    assert "READY" in laptop.aegis("status", handle, "--remote", "alice@cluster").out
    laptop.aegis("shutdown", handle, "--remote", "alice@cluster")
    assert login.logins == 4
    wait_until(lambda: site.jobs()[handle.partition("://")[2]]["job_state"] == "F")
    assert list(laptop.path.rglob("*.sh")) == [], "the job's files are where the job is"
    assert not (laptop.path / "state" / "aegis" / "jobs").exists(), "and so is its entry in the index"


def test_a_connection_that_is_cut_ends_no_wait(laptop: Lab, site: PbsLab, login: Sshd) -> None:
    process = laptop.start(*submit(laptop, site, "--wait"))
    wait_until(lambda: "submitted pbs://" in laptop.output(process).err)
    assert login.cut()
    process.wait(60)
    answer = laptop.output(process)
    assert answer.code == 0, answer.err
    assert answer.err.count(CUT) == 1
    assert len(answer.out.split()) == 2
    assert login.logins == len(login.prompts) == 2
    assert len(site.jobs()) == 1, "nothing was submitted twice"


def test_servers_are_seen_where_sshd_forwards_no_ports(laptop: Lab, site: PbsLab, login: Sshd) -> None:
    login.stop()
    login.extra = ["AllowTcpForwarding no"]
    login.start()
    assert len(laptop.aegis(*submit(laptop, site, "--wait")).out.split()) == 2
    assert login.logins == 1


def test_a_dry_run_leaves_nothing_over_there(laptop: Lab, site: PbsLab, login: Sshd) -> None:
    before = sorted(site.home.rglob("*"))
    script = laptop.aegis(*submit(laptop, site, "--dry-run")).out
    assert script.startswith("#!/bin/bash -l\n#PBS ")
    assert f"endpoints_file: {site.home}/endpoints.txt" in script
    assert sorted(site.home.rglob("*")) == before
    assert site.jobs() == {}
    assert login.logins == 1


def test_models_of_the_catalog_have_endpoints_under_the_usual_names(
    laptop: Lab, site: PbsLab, login: Sshd
) -> None:
    far = ["--remote", "alice@cluster", "--platform", str(site.profile("lab-pbs.yaml")), "--engine", "sim"]
    one = laptop.aegis("launch", "Qwen3-8B", *far, "--wait")
    assert (laptop.work / "aegis_endpoints.txt").read_text().split() == one.out.split()
    (kept,) = site.home.rglob("endpoints.txt")
    assert kept.parent.name.startswith("Qwen3-8B.1025")
    both = laptop.aegis("batch-launch", "Qwen3-8B", "Qwen3-14B", *far, "--wait").out.split()
    copies = [laptop.work / f"aegis_endpoints.{name}.txt" for name in ("Qwen3-8B", "Qwen3-14B")]
    assert [copy.read_text().strip() for copy in copies] == both


def test_a_file_that_a_job_over_there_keeps_is_refused(laptop: Lab, site: PbsLab, login: Sshd) -> None:
    laptop.aegis(*submit(laptop, site))
    said = laptop.aegis(*submit(laptop, site), code=2).err
    assert f"error: {site.home}/endpoints.txt is the endpoints file of pbs://1025" in said
    assert len(site.jobs()) == 1
