"""`aegis map --script` inside of the servers' own job: programs run next to their servers, and outlive lost workers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

NODES = ("node1", "node2", "node3", "node4")
FILES = 24
CLIENT = "sh -c 'echo $(hostname) $2; sleep 0.5' - {input} {host}"


def workers(fleet: Fleet, node: str) -> list[str]:
    """The pids of this user's workers on a node, guards among them."""
    done = fleet.lab.run("pgrep", "-u", fleet.user.name, "-f", "worker.py --driver", host=node, code=None)
    return done.out.split()


def test_programs_run_on_the_nodes_of_their_servers(alice: User) -> None:
    fleet = Fleet(alice)
    for number in range(FILES):
        alice.transport.write(str(fleet.work / "in" / f"{number}.txt"), "x" * number)
    handle = fleet.submit(map=f"in --output out --slots 2 --script {shlex.quote(CLIENT)}", instances=2)
    out = fleet.work / "out"
    wait_until(lambda: len(list(out.glob("*.out"))) > 3, "some are done", 60)
    killed = {node: workers(fleet, node) for node in NODES}
    node = next(node for node in NODES if killed[node])
    fleet.lab.run("kill", "-9", *killed[node], host=node, code=None)
    view = fleet.wait_for(handle, "SHUTDOWN")
    assert view["reason"] == f"all {FILES} are done"
    pairs = [(out / f"{number}.txt.out").read_text().split() for number in range(FILES)]
    assert all(ran == host for ran, host in pairs)
    assert len({host for _, host in pairs}) == 2
    assert not any(workers(fleet, each) for each in NODES)
    (log,) = (fleet.work / "logs").rglob("*.err")
    assert "programs run next to their servers" in log.read_text()
