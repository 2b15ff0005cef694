"""New orders for an agent that runs: what is told twice is done once, and nothing else is touched."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from .test_agent_process import Node, Registry, is_alive, node, registry, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["node", "registry"]  # fixtures
pytestmark = pytest.mark.lab  # 20 s, most of it waiting


def orders(node: Node, version: int, instances: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "node": "n",
        "registry": node.registry_url,
        "push_interval": 0.3,
        "stays": True,
        "version": version,
        "instances": list(instances),
        **more,
    }


def names(registry: Registry) -> list[str]:
    return [service["service_id"] for service in registry.pushes[-1]["services"]]


def settled(registry: Registry, version: int, *wanted: str) -> None:
    """Wait until the agent follows a version, and all that it has is healthy."""

    def there() -> bool:
        push = registry.pushes[-1]
        healthy = all(service["status"] == "healthy" for service in push["services"])
        return push["version"] == version and names(registry) == list(wanted) and healthy

    wait_until(there, f"{wanted} of version {version}; last: {registry.pushes[-1:]}")


def test_instances_come_and_go_and_the_others_are_left_alone(node: Node, registry: Registry) -> None:
    for name in ("m-0", "m-1", "m-2"):
        node.instance(name)
    first, second, third = node.instances
    del node.instances[1:]
    node.start()
    pid = registry.wait("healthy")["metadata"]["pid"]
    registry.answer = {"orders": orders(node, 3, [first, second])}
    settled(registry, 3, "m-0", "m-1")
    registry.answer = {"orders": orders(node, 2, [third])}  # older: says nothing
    seen = len(registry.pushes)
    wait_until(lambda: len(registry.pushes) > seen + 2)
    registry.answer = {"orders": orders(node, 4, [first, third])}
    settled(registry, 4, "m-0", "m-2")
    assert registry.history("m-1")[-1] == "stopped"
    assert registry.last()["metadata"]["pid"] == pid
    assert [len(node.starts(name)) for name in ("m-0", "m-1", "m-2")] == [1, 1, 1]
    os.kill(node.guard, signal.SIGTERM)
    assert node.wait_end() == 0


def test_who_leaves_answers_what_it_has_and_its_place_is_taken_after_it(
    node: Node, registry: Registry
) -> None:
    folder = node.instance()
    node.start()
    first = registry.wait("healthy")["metadata"]["pid"]
    (folder / "running").write_text("1")
    (folder / "tokens").write_text("moving")
    registry.answer = {"orders": orders(node, 1, [], leaving={"m-0": 60.0})}
    registry.wait("draining")
    again = {**copy.deepcopy(node.instances[0]), "generation": 1}
    registry.answer = {"orders": orders(node, 2, [again], leaving={})}  # wanted again, and not where it is
    registry.wait("healthy", generation=2)
    assert registry.last()["metadata"]["pid"] != first
    (folder / "running").write_text("1")
    registry.answer = {"orders": orders(node, 3, [], leaving={"m-0": 60.0})}
    registry.wait("draining")
    began = time.monotonic()
    second = registry.last()["metadata"]["pid"]
    while time.monotonic() - began < 1.0:  # a request runs: nothing ends it
        assert is_alive(second)
        time.sleep(0.1)
    (folder / "running").write_text("0")
    wait_until(lambda: registry.pushes[-1]["services"] == [], "it has left")
    assert registry.last()["metadata"]["reason"] == "drained"
    assert not is_alive(second)


def test_the_time_to_finish_is_limited(node: Node, registry: Registry) -> None:
    folder = node.instance()
    (folder / "running").write_text("1")
    (folder / "tokens").write_text("moving")
    node.start()
    registry.wait("healthy")
    registry.answer = {"orders": orders(node, 1, [], leaving={"m-0": 0.3})}
    wait_until(lambda: registry.pushes[-1]["services"] == [], "it has left")


class Told(Node):
    """An agent whose line of the fleet file is what a test says."""

    line: dict[str, Any]

    def command(self, *arguments: str) -> list[str]:
        fleet = self.folder / "fleet.jsonl"
        fleet.write_text(json.dumps(self.line, separators=(",", ":")) + "\n")
        return [self.python, "-I", str(self.agent), str(fleet), "--node", "n", *arguments]


@pytest.fixture
def told(tmp_path: Path, registry: Registry) -> Iterator[Told]:
    found = Told(tmp_path, registry.port)
    yield found
    found.close()


def test_an_agent_without_instances_stays_and_one_that_was_killed_comes_back_with_what_was_added(
    told: Told, registry: Registry
) -> None:
    told.line = orders(told, 0, [])
    told.start()
    wait_until(lambda: len(registry.pushes) > 3)  # nothing to do, and it is there
    assert told.process is not None
    assert told.process.poll() is None
    told.instance()
    told.line = orders(told, 1, told.instances)  # the head writes the file, too
    registry.answer = {"orders": told.line}
    registry.wait("healthy")
    registry.answer = {}
    os.kill(told.worker, signal.SIGKILL)
    told.wait_end()
    registry.pushes.clear()
    told.start()
    registry.wait("healthy")
    assert registry.pushes[-1]["version"] == 1
    assert len(told.starts()) == 2


def test_an_instance_with_other_orders_starts_anew_after_all_its_starts_before(
    node: Node, registry: Registry
) -> None:
    node.instance()
    node.start()
    first = registry.wait("healthy")["metadata"]["pid"]
    other = copy.deepcopy(node.instances[0])
    other["argv"].append("other")
    other["generation"] = 7
    registry.answer = {"orders": orders(node, 1, [other])}
    registry.wait("healthy", generation=8)
    assert not is_alive(first)
    assert [start["argv"][-1] for start in node.starts()][-1] == "other"
    assert len(node.starts()) == 2
    reasons = {each["metadata"]["reason"] for push in registry.pushes for each in push["services"]}
    assert "drained" not in reasons  # which would mean that it is not to come back


@pytest.mark.parametrize("bad", [{"version": 1, "instances": [{}]}, 7])
def test_orders_that_nobody_can_follow_change_nothing(node: Node, registry: Registry, bad: Any) -> None:
    node.instance()
    node.start()
    registry.wait("healthy")
    registry.answer = {"orders": bad}
    seen = len(registry.pushes)
    wait_until(lambda: len(registry.pushes) > seen + 2)
    registry.answer = {}
    registry.wait("healthy")
    assert len(node.starts()) == 1
    assert "Traceback" not in node.err.read_text()
