from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import SiteError
from aegis.fleet.nodes import ANY, Host, allocation, expand, head_of, local_hosts
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


def test_outside_an_allocation_it_says_what_to_do() -> None:
    with pytest.raises(SiteError, match="this is no allocation") as caught:
        allocation(SITE, {})
    assert caught.value.hint is not None
    assert "aegis submit" in caught.value.hint


@pytest.mark.parametrize("environ", [{"PBS_NODEFILE": "/no/such"}, {"SLURM_JOB_NODELIST": "n[1-2]; $(x)[1"}])
def test_an_unreadable_list_is_an_error_of_the_site(environ: dict[str, str]) -> None:
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


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("node[1-3,7],x[01-02]", "node1 node2 node3 node7 x01 x02"),
        ("n1", "n1"),
        ("n2,n1,n2", "n2 n1 n2"),
        ("n[08-12,3]", "n08 n09 n10 n11 n12 n3"),
        ("r[0-1]n[01,5],b", "r0n01 r0n5 r1n01 r1n5 b"),
        ("127.0.0.[2-3]", "127.0.0.2 127.0.0.3"),
        ("n[9-010]", "n9 n10"),
        (" a,,b ", "a b"),
        ("", ""),
    ],
)
def test_host_lists_of_slurm(expression: str, names: str) -> None:
    assert expand(expression) == names.split()


@pytest.mark.parametrize(
    "expression",
    [
        "n[1-3",
        "n1]",
        "n[]",
        "n[a]",
        "n[3-1]",
        "n[1-2]x",
        "n[1-2-3]",
        "n[1,]",
        "n[¹]",
        "n[1-99999999999]",
        "n[1-9999][1-9999]",
    ],
)
def test_what_is_no_host_list_is_an_error_in_words(expression: str) -> None:
    with pytest.raises(ValueError, match=r"host|hosts"):
        expand(expression)


@given(st.text(alphabet="ab1[]-,0 \n²"))
def test_any_text_is_names_or_an_error(expression: str) -> None:
    try:
        names = expand(expression)
    except ValueError:
        return
    assert not [name for name in names if set(name) & set("[],")]


def test_twenty_thousand_names_take_no_time() -> None:
    names = [f"x{number}c0s0b0n0" for number in range(20_000)]
    assert expand(",".join(names)) == names
    assert len(expand("frontier[00001-09472]")) == 9472


numbers = st.integers(0, 1200)
ranges = st.builds(
    lambda first, more, width: (
        str(first).zfill(width) + (f"-{str(first + more).zfill(width)}" if more else "")
    ),
    numbers,
    st.integers(0, 5),
    st.integers(0, 4),
)
brackets = st.lists(ranges, min_size=1, max_size=3).map(lambda each: f"[{','.join(each)}]")
items = st.one_of(
    st.sampled_from(["n1", "login.site", "x-07"]),
    st.builds(lambda *parts: "".join(parts), st.sampled_from(["n", "gpu-", "x0"]), brackets),
    st.builds(lambda *parts: "".join(parts), st.just("r"), brackets, st.just("n"), brackets),
)


@pytest.mark.lab
@pytest.mark.skipif(shutil.which("scontrol") is None, reason="no Slurm here")
def test_host_lists_are_read_as_scontrol_reads_them(tmp_path: Path) -> None:
    config = tmp_path / "slurm.conf"
    config.write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\n")
    environ = {"PATH": os.environ["PATH"], "SLURM_CONF": str(config)}

    @given(st.lists(items, min_size=1, max_size=4).map(",".join))
    @settings(max_examples=60, deadline=None)
    def same(expression: str) -> None:
        argv = ["scontrol", "show", "hostnames", expression]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True, timeout=30)
        assert expand(expression) == done.stdout.split()

    same()


def test_a_component_of_a_het_job_has_its_own_nodes() -> None:
    environ = {
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "n1",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]",
    }
    assert [host.name for host in allocation(PLAIN, {**environ, "AEGIS_HET_GROUP": "1"})] == ["n2", "n3"]
    assert [host.name for host in allocation(PLAIN, {**environ, "AEGIS_HET_GROUP": "0"})] == ["n1"]
    narrowed = {"SLURM_JOB_NODELIST": "n[2-3]", "AEGIS_HET_GROUP": "1"}
    assert [host.name for host in allocation(PLAIN, narrowed)] == ["n2", "n3"]


def test_the_head_of_another_component_is_reached_by_the_fast_network_where_it_is_in_it() -> None:
    hosts = [Host("n1.site", "n1.hsn", ANY)]
    assert head_of(hosts, "n0.site", ".hsn", lambda name: name == "n0.hsn") == Host("n0.site", "n0.hsn", ANY)
    assert head_of(hosts, "login3", ".hsn", lambda _: False) == Host("login3", "login3", ANY)
    assert head_of(hosts, "login3", ".hsn.invalid") == Host("login3", "login3", ANY)  # asked for real
