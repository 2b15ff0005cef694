"""Jobs of several components on a real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.errors import SiteError
from tests.lab.conftest import wait_until

if TYPE_CHECKING:
    from .lab import SlurmLab, User

pytestmark = pytest.mark.lab

# A head that serves through a step on its own nodes, and ends when that ends.
SERVE = """echo "$AEGIS_JOB"; scontrol show hostnames "$SLURM_JOB_NODELIST"
exec srun --het-group="$AEGIS_HET_GROUP" --ntasks-per-node=1 --overlap --mem=0 --no-kill --quiet \\
  bash -c 'trap "touch told.$0; exit" TERM; touch "began.$0.$(hostname)"; sleep 600 & wait' "$AEGIS_HET_GROUP"
"""


class Batch:
    """A job of two components: one node of a40, two nodes of a100."""

    def __init__(self, user: User, *directives: str) -> None:
        self.user = user
        asked = {"device_option": "gres", "directives": directives}
        parts = (
            user.component(SERVE, "one", queue="a40", devices=2, **asked),
            user.component(SERVE, "two", queue="a100", devices=4, nodes=2, **asked),
        )
        self.handle = user.submit(*parts).handle
        self.number = self.handle.removeprefix("slurm://")

    def wait_begun(self) -> None:
        hosts = [["node1", "node2"], ["node3"], ["node4"]]
        wait_until(
            lambda: all(
                any((self.user.work / f"began.{min(number, 1)}.{host}").exists() for host in each)
                for number, each in enumerate(hosts)
            ),
            "both serve on all their nodes",
        )

    def states(self) -> list[str]:
        found = self.user.slurm.query([f"{self.handle}+{number}" for number in (0, 1)])
        return [found[f"{self.handle}+{number}"].state for number in (0, 1)]

    def was_told(self, number: int) -> bool:
        return (self.user.work / f"told.{number}").exists()


@pytest.fixture
def batch(alice: User) -> Batch:
    made = Batch(alice)
    made.wait_begun()
    return made


def test_components_are_seen_one_by_one_and_each_has_nodes_of_its_own(batch: Batch, alice: User) -> None:
    one, two = f"{batch.handle}+0", f"{batch.handle}+1"
    alice.transport.asked.clear()
    found = alice.slurm.query([one, two, batch.handle])
    assert [argv[0] for argv in alice.transport.asked] == ["squeue"]
    assert {status.state for status in found.values()} == {"LAUNCHING"}
    assert found[batch.handle] == found[one]
    assert found[one].nodes in {"node1", "node2"}
    assert found[two].nodes == "node[3-4]"
    assert found[two].log == found[one].log  # of the script, which is one
    said = (alice.run("cat", alice.slurm.logs(handle).out).out.splitlines() for handle in (one, two))
    assert list(said) == [[one, found[one].nodes], [two, "node3", "node4"]]


def test_the_second_is_cancelled_and_the_first_lives_on(batch: Batch, alice: User) -> None:
    alice.slurm.cancel(f"{batch.handle}+1")
    wait_until(lambda: batch.states() == ["LAUNCHING", "SHUTDOWN"])
    assert batch.was_told(1)
    assert not batch.was_told(0)
    alice.slurm.cancel(f"{batch.handle}+0")  # the last one
    wait_until(lambda: batch.states() == ["SHUTDOWN", "SHUTDOWN"])
    assert batch.was_told(0)


def test_the_first_stops_serving_and_the_second_lives_on(batch: Batch, alice: User) -> None:
    alice.slurm.cancel(f"{batch.handle}+0")
    wait_until(lambda: batch.was_told(0))
    assert batch.states() == ["LAUNCHING", "LAUNCHING"]  # its nodes stay with the job
    assert not batch.was_told(1)
    with pytest.raises(SiteError, match=rf"cannot end the first component of job {batch.number} without"):
        alice.slurm.cancel(f"{batch.handle}+0")
    alice.slurm.cancel(f"{batch.handle}+1")
    wait_until(lambda: batch.states() == ["SHUTDOWN", "SHUTDOWN"])  # nothing is left to wait for


def test_the_whole_job_is_cancelled(batch: Batch, alice: User) -> None:
    alice.slurm.cancel(batch.handle)
    wait_until(lambda: batch.states() == ["SHUTDOWN", "SHUTDOWN"])


def test_of_a_job_that_waits_no_component_is_cancelled_alone(alice: User) -> None:
    batch = Batch(alice, "--hold")
    assert batch.states() == ["PENDING", "PENDING"]
    for number in (0, 1):
        with pytest.raises(SiteError) as error:
            alice.slurm.cancel(f"{batch.handle}+{number}")
        assert "whole job" in str(error.value.hint)
    alice.slurm.cancel(batch.handle)
    wait_until(lambda: batch.states() == ["SHUTDOWN", "SHUTDOWN"])


def test_a_lost_node_ends_the_first_component_of_one_node_and_with_it_all(
    batch: Batch, alice: User, slurm: SlurmLab
) -> None:
    slurm.crash("node3", noticed=True)  # Slurm ends a first component of one node with any node of the job
    found = alice.wait_for(f"{batch.handle}+1", "FAILED")
    assert found.reason.startswith("a node of its job failed, and Slurm ended the first component")
    assert alice.wait_for(f"{batch.handle}+0", "FAILED").reason == "a node failed"
    alice.slurm.cancel(batch.handle)
