"""Weights on the nodes of a PBS: over TCP, by the site's mpiexec; and where all nodes are one machine, as they are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import chat, wait_until
from tests.lab.stand_in import make_engine, make_entry

from .lab import NODES, can_rename_hosts

if TYPE_CHECKING:
    from .lab import PbsLab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not can_rename_hosts(), reason="no right to open a UTS namespace"),
]


def test_servers_load_what_was_brought_to_their_nodes(pbs: PbsLab) -> None:
    lab = pbs.lab
    venv, entry = make_engine(lab.path), make_entry(lab.path)
    home = lab.path / "hf home"
    model = {"model": "org/name", "model_source": str(entry), "instances": 2, "tensor_parallel_size": 4}
    file = lab.deployment(
        models=[model],
        venv=str(venv),
        hf_home=str(home),
        stager="tcp",
        platform=str(pbs.profile()),
        queue="workq",
        walltime="00:10:00",
        startup_timeout=60,
    )
    done = lab.aegis("submit", "--config", file, "--wait", timeout=120)
    handle = done.err.partition("submitted ")[2].split()[0]
    assert [endpoint.partition(":")[0] for endpoint in done.out.split()] == list(NODES[:2])
    assert chat(done.out.split()[1], "org/name")["choices"]
    snapshot = home / "hub" / "models--org--name" / "snapshots" / "abc"
    assert (venv / "calls").read_text().splitlines() == [str(snapshot)] * 2
    assert "staging 19.1 MiB to 2 nodes (tcp: asked for)" in done.err
    (log,) = lab.work.rglob("*.1025.*.err")
    wait_until(lambda: "staged 19.1 MiB to 2 of 2 nodes" in log.read_text())
    lab.aegis("shutdown", handle)
    wait_until(lambda: not list(lab.work.rglob(".staging-*")))
