"""Weights on the nodes of a real Slurm, each with a file system of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.conftest import wait_until
from tests.lab.stand_in import make_engine, make_entry

from .fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
HOME = "/dev/shm/hf home"
SNAPSHOT = f"{HOME}/hub/models--org--name/snapshots/abc"


@pytest.fixture
def fleet(alice: User) -> Fleet:
    return Fleet(alice)


@pytest.fixture
def keys(fleet: Fleet) -> Callable[..., dict[str, Any]]:
    """Return the keys of a deployment of one server per node."""
    venv, entry = make_engine(fleet.work), make_entry(fleet.work)
    venv.chmod(0o777)  # its servers write down what they load

    def with_others(**others: Any) -> dict[str, Any]:
        return {
            "model": "org/name",
            "engine": "vllm",
            "model_source": str(entry),
            "venv": str(venv),
            "hf_home": HOME,
            "instances": 2,
            **others,
        }

    return with_others


def log_of(fleet: Fleet, handle: str) -> str:
    number = handle.removeprefix("slurm://")
    (log,) = (fleet.work / "logs").rglob(f"*.{number}.err")
    return log.read_text()


def loaded(fleet: Fleet) -> list[str]:
    return (fleet.work / "venv" / "calls").read_text().splitlines()


def on(fleet: Fleet, node: str, *argv: str) -> str:
    return fleet.lab.run(*argv, host=node).out


@pytest.mark.parametrize("stager", ["tcp", None])
def test_each_node_gets_its_weights_and_serves_them(
    fleet: Fleet, keys: Callable[..., Any], stager: str | None
) -> None:
    handle, endpoints = fleet.serve(**keys(**({"stager": stager} if stager else {})))
    assert len(endpoints) == 2
    assert loaded(fleet) == [SNAPSHOT] * 2
    assert "staged 19.1 MiB to 2 of 2 nodes" in log_of(fleet, handle)
    fleet.aegis("shutdown", handle)
    fleet.wait_for(handle, "SHUTDOWN")
    assert not list(fleet.work.rglob(".staging-*"))


def test_a_node_without_room_is_given_up_and_the_other_serves(fleet: Fleet, keys: Callable[..., Any]) -> None:
    on(fleet, "node2", "mkdir", "-p", HOME)
    on(fleet, "node2", "mount", "-t", "tmpfs", "-o", "size=8M,mode=1777", "small", HOME)
    try:
        handle = fleet.submit(**keys(nodelist="node1,node2"))
        view = fleet.wait_for(handle, "READY")
        log = log_of(fleet, handle)
        assert "node2: " in log
        assert " GiB free and needs " in log
        view = wait_until(lambda: (found := fleet.view(handle))["reason"] and found)
        assert (view["healthy"], view["instances"]) == (1, 2)
        assert "1 of 2 instances failed" in view["reason"]
        fleet.aegis("shutdown", handle)
    finally:
        on(fleet, "node2", "umount", HOME)
