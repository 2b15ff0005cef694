from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import SiteError
from aegis.fleet.nodes import ANY, Host, allocation, head_of, local_hosts
from aegis.spec.platform import Network, Platform

if TYPE_CHECKING:
    from pathlib import Path

SITE = Platform(name="site", launcher="mpiexec", network=Network(host_suffix=".hsn"))
PLAIN = Platform(name="site", launcher="srun")


def test_one_local_node_is_this_machine() -> None:
    assert local_hosts(1) == [Host("local", "127.0.0.1", "127.0.0.1")]


def test_simulated_nodes_have_addresses_of_their_own() -> None:
    hosts = local_hosts(10_000)
    assert len({host.address for host in hosts}) == len({host.name for host in hosts}) == 10_000
    for host in hosts:
        parts = [int(part) for part in host.address.split(".")]
        assert parts[0] == 127
        assert all(part < 255 for part in parts)
        assert parts[3] > 0
        assert host.bind == host.address


def test_local_needs_no_allocation() -> None:
    assert len(allocation(Platform(name="l", nodes=3), {"PBS_NODEFILE": "/no/such"})) == 3


def test_each_node_of_a_pbs_job_once_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("n2.site\nn2.site\nn1.site\nn2.site\n")
    assert allocation(SITE, {"PBS_NODEFILE": str(file)}) == [
        Host("n2.site", "n2.hsn", ANY),
        Host("n1.site", "n1.hsn", ANY),
    ]
    assert allocation(PLAIN, {"PBS_NODEFILE": str(file)})[0] == Host("n2.site", "n2.site", ANY)


def test_slurm_is_asked_for_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert argv == ["scontrol", "show", "hostnames", "n[1-2]; $(x)"]
        assert options["timeout"] > 0
        return subprocess.CompletedProcess(argv, 0, "n1\nn2\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    hosts = allocation(PLAIN, {"SLURM_JOB_NODELIST": "n[1-2]; $(x)"})
    assert [host.name for host in hosts] == ["n1", "n2"]


def test_outside_an_allocation_it_says_what_to_do() -> None:
    with pytest.raises(SiteError, match="this is no allocation") as caught:
        allocation(SITE, {})
    assert caught.value.hint is not None
    assert "aegis submit" in caught.value.hint


@pytest.mark.parametrize("environ", [{"PBS_NODEFILE": "/no/such"}, {"SLURM_JOB_NODELIST": "n[1-2]"}])
def test_an_unreadable_list_is_an_error_of_the_site(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/no/such")
    with pytest.raises(SiteError, match="cannot be read"):
        allocation(PLAIN, environ)


def test_an_empty_list_is_no_allocation(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("\n")
    with pytest.raises(SiteError):
        allocation(SITE, {"PBS_NODEFILE": str(tmp_path / "nodes")})


def test_the_head_is_a_node_or_the_machine_that_holds_the_allocation() -> None:
    hosts = [Host("n1.site", "n1.hsn", ANY), Host("n2.site", "n2.hsn", ANY)]
    assert head_of(hosts, "n2") == hosts[1]
    assert head_of(hosts, "login3.site") == Host("login3.site", "login3.site", ANY)  # salloc on a login node
    assert head_of(local_hosts(2), "anything") == local_hosts(2)[0]
