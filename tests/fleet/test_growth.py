"""More and fewer servers, and spare nodes: the head against a registry whose agents do what they are told."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aegis.errors import NotFoundError
from aegis.fleet.gateways import with_gateways
from aegis.fleet.growth import ASK_SECONDS, Growth
from aegis.fleet.nodes import local_hosts
from aegis.fleet.order import Need, NodeOrder, Staged, fleet_file, node_orders
from aegis.fleet.progress import Progress, members_of
from aegis.fleet.roster import Roster
from aegis.registry.model import Asked, Granted, Orders, Push, Report, Seen, Watched, Wish
from aegis.registry.store import Store
from aegis.runs import RunDir
from aegis.spec.deployment import ModelEntry
from aegis.spec.platform import Node
from tests.registry.conftest import Clock

from .test_order import fleet

if TYPE_CHECKING:
    from aegis.fleet.order import Fleet

DEVICES = 4
LOST_SECONDS = 60.0


def entry(name: str, devices: int = 1, instances: int = 1, **keys: Any) -> ModelEntry:
    return ModelEntry(model=name, engine="vllm", tensor_parallel_size=devices, instances=instances, **keys)


class Agent:
    """One node: reports what it runs, and follows the orders that it hears; an engine ends with its agent."""

    def __init__(self, orders: NodeOrder) -> None:
        self.line = self.orders = orders
        self.alive = True
        self.failed: set[str] = set()
        self.ending: set[str] = set()

    def push(self, store: Store) -> None:
        reports = [self._report(each.id, each.service_type, each.metadata) for each in self.orders.instances]
        reports += [self._report(name, "vllm", {"reason": "drained"}, "stopped") for name in self.ending]
        store.apply(Push(node=self.orders.node, services=tuple(reports), version=self.orders.version))
        self.ending.clear()
        told = store.acknowledge(self.orders.node)
        if told.orders:
            new = msgspec.json.decode(bytes(told.orders), type=NodeOrder)
            assert new.version > self.orders.version
            kept = {each.id: each for each in new.instances}
            self.ending = {each.id for each in self.orders.instances} - kept.keys()
            self.failed = {name for name in self.failed if name in kept and kept[name].generation == 0}
            self.orders = new

    def _report(self, name: str, type_: str, metadata: dict[str, Any], status: Any = "healthy") -> Report:
        status = "failed" if name in self.failed else status
        return Report(
            service_id=name, host="h", port=8000, service_type=type_, status=status, age=0.0,
            metadata={"generation": 1, "instance": name.partition(".rank")[0], **metadata},
        )  # fmt: skip


class Job:
    """A head, a registry and the agents of all nodes."""

    def __init__(self, made: Fleet, folder: Path, gateways: int = 0) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.given_up: set[str] = set()
        self.outdated = False
        self.folder = None
        orders = with_gateways(made, node_orders(made), gateways)
        self.agents = [Agent(each) for each in msgspec.json.decode(fleet_lines(orders), type=list[NodeOrder])]
        self.progress = Progress(members_of(orders))
        self.roster = Roster(made, orders)
        run = RunDir(folder, "m.abc")
        self.growth = Growth(self.roster, run, self, self.said.append, LOST_SECONDS)  # type: ignore[arg-type]
        self.since: int | None = None
        self.restart_registry()
        self.settle()

    # what Growth asks of a client

    def order(self, node: str, orders: bytes) -> None:
        self.store.order(msgspec.json.decode(orders, type=Orders), msgspec.Raw(orders))
        assert node

    def nodes(self) -> list[Seen]:
        return self.store.nodes()

    def answer(self, wish_id: str, answer: Granted) -> None:
        if self.store.answer(wish_id, answer) is None:
            raise NotFoundError("no such wish")

    # what happens

    def restart_registry(self) -> None:
        self.store = Store(
            wall=self.clock.wall, monotonic=self.clock.monotonic, revision=int(self.clock.now) * 10**6
        )

    def step(self) -> Watched:
        self.growth._asked = -ASK_SECONDS * 10
        seen = self.store.changed_since(self.since)
        self.since = seen.revision
        self.progress.apply(seen.services, seen.removed, reset=seen.reset)
        self.growth.step(self, seen, self.progress)  # type: ignore[arg-type]
        return seen

    def settle(self, seconds: float = 6.0) -> None:
        """Let agents and head talk for a while."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            self.growth._began -= 1.0
            for agent in self.agents:
                if agent.alive:
                    agent.push(self.store)
            self.store.sweep()
            self.step()

    def wish(self, model: str, instances: int, **more: Any) -> Granted:
        asked: Asked = self.store.wish(Wish(model=model, instances=instances, **more))
        self.step()
        known = self.store.asked(asked.id)
        assert known
        assert known.answer
        return known.answer

    def running(self) -> dict[str, str]:
        """Service id -> node, of what agents that live run."""
        return {
            each.id: agent.orders.node
            for agent in self.agents
            if agent.alive
            for each in agent.orders.instances
        }


def fleet_lines(orders: list[NodeOrder]) -> bytes:
    return ("[" + ",".join(fleet_file(orders).splitlines()) + "]").encode()


def job(folder: Path, *entries: ModelEntry, nodes: int, gateways: int = 0, **changes: Any) -> Job:
    made = fleet(*entries, node=Node(devices=DEVICES, mask_variable="MASK"), hosts=local_hosts(nodes))
    return Job(msgspec.structs.replace(made, **changes), folder, gateways)


# Scaling


def test_more_fewer_and_more_again(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a"), nodes=2)
    assert made.wish("a", 3) == Granted(starting=("a-1", "a-2"))
    assert made.progress.counts.wanted == 3
    made.settle()
    assert made.running() == {"a-0": "local-0", "a-1": "local-0", "a-2": "local-0"}
    assert made.progress.counts.healthy == 3
    assert made.wish("a", 1) == Granted(leaving=("a-1", "a-2"))
    assert made.progress.wanted == {"a-0"}
    assert made.roster.orders[0].leaving == {"a-1": 300.0, "a-2": 300.0}
    made.settle()
    assert made.running() == {"a-0": "local-0"}
    assert made.roster.orders[0].leaving == {}
    assert made.wish("a", 1) == Granted()
    assert made.wish("a", 2) == Granted(starting=("a-1",))
    made.settle()
    assert sorted(made.running()) == ["a-0", "a-1"]
    assert made.roster.deployment.models[0].instances == 2
    positions = [each.metadata["position"] for each in made.roster.orders[0].instances]
    assert len(set(positions)) == len(positions)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 2), nodes=1)
    answer = made.wish("a", 3)
    assert "2 more instances take 2 devices" in answer.problem
    assert "--new-job" in answer.hint
    assert made.roster.wanted == ["a-0"]
    assert made.roster.orders[0].version == 0
    assert made.wish("b", 1).hint
    made.settle()
    assert made.running() == {"a-0": "local"}


def test_the_last_server_goes_only_by_force(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a"), entry("b"), nodes=1)
    assert made.wish("a", 0) == Granted(leaving=("a-0",))
    assert [each.name for each in made.roster.deployment.models] == ["b"]
    assert "--force" in made.wish("b", 0).hint
    assert made.wish("b", 0, force=True) == Granted(leaving=("b-0",))
    assert made.progress.counts.lost
    assert made.progress.given_up


def test_others_take_the_place_of_servers_that_failed(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 2, instances=2), nodes=1)
    made.agents[0].failed = {"a-1"}
    made.settle()
    assert made.progress.counts.failed == 1
    assert made.wish("a", 2) == Granted(starting=("a-1",))
    assert made.progress.counts.failed == 0
    made.settle()
    assert made.progress.counts.healthy == 2


def test_members_leave_after_the_one_that_answers(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 8, instances=1), entry("b"), nodes=3)
    assert made.wish("a", 0) == Granted(leaving=("a-0",))
    kept = [each.id for order in made.roster.orders for each in order.instances]
    assert kept == ["a-0.rank1", "b-0"]
    made.settle()
    assert made.running() == {"b-0": "local-2"}
    assert not made.roster.leaving


def test_simulated_devices_are_as_many_as_are_wished_for(tmp_path: Path) -> None:
    sim = msgspec.structs.replace(entry("a"), engine="sim")
    node = Node(devices=1, device_kind="CPU core", mask_variable=None, device_cpus=("0-1",))
    made = Job(fleet(sim, node=node), tmp_path)
    assert made.wish("a", 3) == Granted(starting=("a-1", "a-2"))
    assert [each.cpus for each in made.roster.orders[0].instances] == [[0, 1], [], []]


def test_weights_are_only_where_they_were_staged(tmp_path: Path) -> None:
    need = Need(manifest="/w/manifest", length=1, crc=1)
    staged = Staged(needs=((need,), (need,)))
    made = job(tmp_path, entry("a", 3), entry("b", 2), nodes=2, staged=staged)
    assert "none is free" in made.wish("b", 3).problem.replace("1 is free on one node", "none is free")
    spare = job(tmp_path, entry("a", 3), entry("b", 2), nodes=3, staged=staged)
    assert spare.wish("b", 4).starting == ("b-1", "b-2", "b-3")


# Spare nodes


def test_a_spare_node_takes_over_from_one_that_is_silent(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 2, instances=2), entry("b", 4), nodes=3)
    (lost,) = {made.running()["a-0"], made.running()["a-1"]}
    agent = next(each for each in made.agents if each.orders.node == lost)
    agent.alive = False
    made.settle(LOST_SECONDS - 5)
    assert not made.given_up
    made.settle(20)
    assert made.running() == {"a-0": "local-2", "a-1": "local-2", "b-0": made.running()["b-0"]}
    assert made.given_up == {lost}
    assert made.progress.counts.healthy == 3
    assert any(f"node {lost} is lost (no word from it for 6" in line for line in made.said)
    agent.alive = True  # it comes back: it ends what it has, and is not used again
    made.settle()
    assert agent.orders.instances == []
    assert made.running()["a-0"] == "local-2"
    assert made.roster.spares == []
    others = [each for each in made.agents if each.orders.node not in {lost, "local-2"}]
    assert all(each.orders.version == 0 for each in others)


def test_an_agent_that_was_given_up_is_replaced_at_once(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 4), nodes=2)
    made.agents[0].alive = False
    made.given_up.add("local-0")
    made.step()
    assert made.roster.lost == {0}
    made.settle()
    assert made.running() == {"a-0": "local-1"}


def test_an_instance_over_nodes_starts_anew_with_the_spare_in_the_place_of_the_lost_one(
    tmp_path: Path,
) -> None:
    made = job(tmp_path, entry("a", 8), nodes=3)
    before = made.roster.orders[1].instances[0]
    made.given_up.add("local-0")
    made.agents[0].alive = False
    assert made.growth.goes_on(made, made.progress)  # type: ignore[arg-type]
    made.settle()
    assert made.running() == {"a-0": "local-2", "a-0.rank1": "local-1"}
    after = made.roster.orders[1].instances[0]
    assert before.generation == 0
    assert after.generation == 1
    assert "127.0.0.3" in " ".join(after.argv)
    assert "127.0.0.1 " not in " ".join([*after.argv, ""])


def test_no_spare_node_is_left(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 4, instances=2), nodes=2)
    made.agents[1].alive = False
    made.settle(LOST_SECONDS + 20)
    assert [line for line in made.said if "no spare node is left" in line] == [
        line for line in made.said if "lost" in line
    ]
    assert len(made.said) == 1
    assert not made.roster.lost
    made.agents[1].alive = True
    made.settle()
    assert made.progress.counts.healthy == 2


def test_a_spare_node_that_is_silent_or_lacks_the_weights_is_not_taken(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 4), nodes=3)
    made.growth.unstaged("local-1")
    made.agents[0].alive = made.agents[2].alive = False
    made.settle(LOST_SECONDS + 20)
    assert made.running() == {}
    made.agents[2].alive = True
    made.settle()
    assert made.running() == {"a-0": "local-2"}


def test_a_gateway_moves_with_its_node(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a", 4), nodes=2, gateways=1)
    made.agents[0].alive = False
    made.given_up.add("local-0")
    made.settle()
    assert made.running() == {"a-0": "local-1", "gateway-0": "local-1"}
    gateway = made.roster.orders[1].instances[0]
    assert (gateway.address, gateway.metadata["node"]) == ("127.0.0.2", "local-1")
    assert "127.0.0.2" in gateway.argv
    assert made.wish("a", 0, force=True).leaving == ("a-0",)
    made.settle()
    assert made.running() == {"gateway-0": "local-1"}


def test_orders_survive_a_restart_of_the_registry_and_the_file_holds_them(tmp_path: Path) -> None:
    made = job(tmp_path, entry("a"), nodes=1)
    made.wish("a", 2)
    assert made.outdated
    lines = [
        msgspec.json.decode(line, type=NodeOrder) for line in made.growth._run.fleet.read_text().splitlines()
    ]
    assert [each.id for each in lines[0].instances] == ["a-0", "a-1"]
    assert lines[0].version == 1
    made.restart_registry()
    made.settle()
    assert sorted(made.running()) == ["a-0", "a-1"]
    assert made.progress.counts.healthy == 2


# Everything at once


class Everything(RuleBasedStateMachine):
    """Wishes, deaths, returns and restarts in any order: in the end there runs what is wanted, once, on nodes that live."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        entries = (entry("a", 2, 2), entry("b", 8), entry("c"))
        self.job = job(Path(self.folder.name), *entries, nodes=7)

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(model=st.sampled_from("abc"), count=st.integers(0, 5), force=st.booleans())
    def scale(self, model: str, count: int, force: bool) -> None:
        before = self.job.roster.wanted
        answer = self.job.wish(model, count, force=force)
        if answer.problem:
            assert self.job.roster.wanted == before
        else:
            assert sum(name.startswith(model) for name in self.job.roster.wanted) == count

    @rule(number=st.integers(0, 6))
    def die(self, number: int) -> None:
        self.job.agents[number].alive = False

    @rule(number=st.integers(0, 6))
    def come_back(self, number: int) -> None:
        self.job.agents[number].alive = True

    @rule(number=st.integers(0, 6))
    def restart_agent(self, number: int) -> None:
        agent, file = self.job.agents[number], self.job.growth._run.fleet
        if file.exists() and agent.alive:
            agent.orders = msgspec.json.decode(file.read_text().splitlines()[number], type=NodeOrder)

    @rule()
    def restart_registry(self) -> None:
        self.job.clock.now += 1
        self.job.restart_registry()

    @rule(seconds=st.sampled_from([1, 3, 20, 90]))
    def pass_time(self, seconds: int) -> None:
        self.job.settle(seconds)

    @precondition(lambda self: all(agent.alive for agent in self.job.agents))
    @rule()
    def all_is_well_in_the_end(self) -> None:
        self.job.settle(10)
        roster = self.job.roster
        expected = {
            f"{name}.rank{member.rank}" if member.rank else name: roster.fleet.hosts[member.node].name
            for name in roster.wanted
            for member in roster.instances[name].members
        }
        assert self.job.running() == expected
        counts = self.job.progress.counts
        assert counts.healthy == counts.wanted == len(roster.wanted)
        assert not roster.leaving

    @invariant()
    def nothing_is_given_twice(self) -> None:
        held: dict[int, list[Any]] = {}
        for each in self.job.roster.instances.values():
            for member in each.members:
                held.setdefault(member.node, []).extend([*member.devices, ("port", member.port)])
        assert not held.keys() & self.job.roster.lost
        for things in held.values():
            assert len(set(things)) == len(things)


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
