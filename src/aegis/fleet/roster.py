"""Which instance runs on which node of a launch, and the orders of all nodes, while both change. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from aegis.errors import ConfigError, PlacementError
from aegis.fleet.order import InstanceOrder, NodeOrder, node_orders, service_names
from aegis.placement import Instance, Member, Placement, place_more
from aegis.registry.model import GATEWAY_TYPE
from aegis.spec.deployment import PORT_START, REGISTRY_PORT
from aegis.spec.machine import CPU_KIND
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from aegis.fleet.order import Fleet
    from aegis.spec.deployment import Deployment

SIMULATED: Final = "simulated device"  # of a machine without accelerators: there are as many as are asked for


class Roster:
    """The instances of a launch by name, and the order of each node, in the order of the hosts.

    Args:
        fleet: what the first orders were made from.
        orders: those of all hosts.
    """

    def __init__(self, fleet: Fleet, orders: list[NodeOrder]) -> None:
        self.fleet = fleet
        self.orders = orders
        self.names = service_names(fleet.deployment.models)
        self.instances = {self._name(each): each for each in fleet.placement.instances}
        self.leaving: set[str] = set()  # instances that finish what they run
        self.lost: set[int] = set()  # nodes that are not used any more
        self.numbers = {host.name: number for number, host in enumerate(fleet.hosts)}
        self._changed: set[int] = set()
        self._positions = {name: position for position, name in enumerate(self.instances)}
        self._staged = self._nodes_with_weights()

    # -- what there is

    @property
    def wanted(self) -> list[str]:
        """The instances that are to serve."""
        return [name for name in self.instances if name not in self.leaving]

    @property
    def spares(self) -> list[int]:
        """The nodes that could take the place of another: they have no instance."""
        used = {member.node for each in self.instances.values() for member in each.members}
        return [number for number in self.numbers.values() if number not in used | self.lost]

    @property
    def nodes(self) -> int:
        """How many nodes hold an instance that is to serve."""
        return len({member.node for name in self.wanted for member in self.instances[name].members})

    @property
    def deployment(self) -> Deployment:
        """The deployment with as many instances of each model as are wanted now; models with none are left out."""
        counts = [self.count(number) for number in range(len(self.names))]
        models = zip(self.fleet.deployment.models, counts, strict=True)
        kept = tuple(msgspec.structs.replace(entry, instances=count) for entry, count in models if count)
        return msgspec.structs.replace(self.fleet.deployment, models=kept)

    def count(self, model: int) -> int:
        """Return how many instances of a model are wanted."""
        return sum(self.instances[name].model == model for name in self.wanted)

    def model(self, text: str) -> int:
        """Return the index of the model that is served under a name.

        Raises:
            ConfigError: there is none.
        """
        served = [entry.name for entry in self.fleet.deployment.models]
        for names in (served, self.names):
            if text in names:
                return names.index(text)
        raise ConfigError(
            f"the job has no model `{text}`",
            hint=did_you_mean(text, served) or f"it has {', '.join(dict.fromkeys(served))}",
        )

    def nodes_of(self, names: Iterable[str]) -> set[int]:
        """Return the nodes that hold a member of any of these instances."""
        return {member.node for name in names for member in self.instances[name].members}

    # -- how it changes

    def scale(
        self, model: int, count: int, grace: float, broken: Collection[str], starts: Mapping[str, int]
    ) -> tuple[list[str], list[str]]:
        """Want so many working instances of a model; nothing changes where that many do not fit.

        Args:
            model: its index.
            count: how many.
            grace: seconds that those with the highest numbers have to finish what they run, where fewer are wanted.
            broken: instances that will not serve again; others take their place.
            starts: per instance, how often it was started.

        Returns:
            The instances that start, and those that leave.

        Raises:
            PlacementError: they do not fit.
        """
        mine = [name for name in self.wanted if self.instances[name].model == model]
        gone = [name for name in mine if name in broken]
        working = sorted(set(mine) - set(gone), key=lambda name: self.instances[name].index)
        new = self._place(model, count - len(working), gone) if count > len(working) else ()
        for name in gone:
            self._withdraw(name)
        for name in working[count:]:
            self._dismiss(name, grace)
        self._add(new, starts)
        return [self._name(each) for each in new], working[count:]

    def release(self, present: set[str]) -> None:
        """Let go of what has left: further members as soon as the first has ended, then devices and ports.

        Args:
            present: the services that the registry knows.
        """
        for name in list(self.leaving):
            head, *others = (_service_id(name, member) for member in self.instances[name].members)
            if head in present:
                continue
            self._drop(name, others)
            if not present.intersection(others):
                self._withdraw(name)

    def move(self, lost: int, spare: int, starts: Mapping[str, int]) -> list[str]:
        """Give all that ran on a lost node to a spare one, which has the same devices; return the instances."""
        touched = [
            name for name, each in self.instances.items() if any(at.node == lost for at in each.members)
        ]
        moved = [_moved(self.instances[name], lost, spare) for name in touched if name not in self.leaving]
        for name in touched:
            self._withdraw(name)
        old, new = self.fleet.hosts[lost], self.fleet.hosts[spare]
        for gateway in self.orders[lost].instances:
            argv = [new.bind if word == old.bind else word for word in gateway.argv]
            place = {"address": new.address, "bind": new.bind, "argv": argv}
            metadata = {**gateway.metadata, "node": new.name}
            self.orders[spare].instances.append(msgspec.structs.replace(gateway, **place, metadata=metadata))
        self.orders[lost].instances.clear()
        self.orders[lost].leaving = {}
        self.lost.add(lost)
        self._changed |= {lost, spare}
        self._add(moved, starts)
        return [self._name(each) for each in moved]

    def flush(self) -> set[int]:
        """Return the nodes whose orders have changed since the last call, and give those a new version."""
        changed, self._changed = self._changed, set()
        for number in changed:
            self.orders[number].version += 1
        return changed

    # -- the parts of it

    def _name(self, instance: Instance) -> str:
        return f"{self.names[instance.model]}-{instance.index}"

    def _place(self, model: int, count: int, gone: Collection[str]) -> tuple[Instance, ...]:
        try:
            return self._try_to_place(model, count, gone)
        except PlacementError:
            node, models = self.fleet.platform.node, self.fleet.deployment.models
            if node.device_kind not in {CPU_KIND, SIMULATED} or any(each.engine != "sim" for each in models):
                raise
            more = (node.devices or 0) + count * models[model].devices
            grown = msgspec.structs.replace(node, devices=more, device_kind=SIMULATED)
            platform = msgspec.structs.replace(self.fleet.platform, node=grown)
            self.fleet = msgspec.structs.replace(self.fleet, platform=platform)
            return self._try_to_place(model, count, gone)

    def _try_to_place(self, model: int, count: int, gone: Collection[str]) -> tuple[Instance, ...]:
        deployment, staged = self.fleet.deployment, self._staged[model]
        return place_more(
            model,
            deployment.models[model],
            count,
            self.fleet.platform.node,
            [each for name, each in self.instances.items() if name not in gone],
            nodes=[each for each in self.numbers.values() if each not in self.lost and each in staged],
            port_start=deployment.port_start or PORT_START,
            reserved_ports={deployment.registry_port or REGISTRY_PORT, deployment.gateway_port or 0},
        )

    def _add(self, instances: Iterable[Instance], starts: Mapping[str, int]) -> None:
        added = {self._name(each): each for each in instances}
        self.instances |= added
        part = Placement(len(self.orders), tuple(added.values()))
        for number, order in enumerate(
            node_orders(msgspec.structs.replace(self.fleet, placement=part)) if added else ()
        ):
            for each in order.instances:
                name = each.metadata["instance"]
                each.metadata["position"] = self._positions.setdefault(name, len(self._positions))
                each.generation = starts.get(name, 0)
                self.orders[number].instances.append(each)
                self.orders[number].leaving.pop(each.id, None)
                self._changed.add(number)
            self.orders[number].push_interval = min(self.orders[number].push_interval, order.push_interval)

    def _dismiss(self, name: str, grace: float) -> None:
        self.leaving.add(name)
        head = self.instances[name].members[0]
        service_id = _service_id(name, head)
        self._drop(name, [service_id])
        self.orders[head.node].leaving = {**self.orders[head.node].leaving, service_id: grace}

    def _withdraw(self, name: str) -> None:
        """Forget an instance: its agents end what is left of it at once."""
        instance = self.instances.pop(name)
        self.leaving.discard(name)
        members = [_service_id(name, member) for member in instance.members]
        for member in instance.members:
            leaving = self.orders[member.node].leaving
            self.orders[member.node].leaving = {
                id_: each for id_, each in leaving.items() if id_ not in members
            }
        self._drop(name, members, instance)

    def _drop(self, name: str, service_ids: Collection[str], instance: Instance | None = None) -> None:
        for member in (instance or self.instances[name]).members:
            order = self.orders[member.node]
            kept = [each for each in order.instances if each.id not in service_ids or _is_gateway(each)]
            if len(kept) < len(order.instances):
                order.instances = kept
                self._changed.add(member.node)

    def _nodes_with_weights(self) -> list[set[int]]:
        """Return, per model, the nodes that may hold it: where weights are staged, those that they were staged to."""
        everywhere, spares = set(self.numbers.values()), set(self.spares)
        needs = self.fleet.staged.needs
        return [
            self.nodes_of(name for name, each in self.instances.items() if each.model == model) | spares
            if needs and needs[model]
            else everywhere
            for model in range(len(self.names))
        ]


def _service_id(name: str, member: Member) -> str:
    return f"{name}.rank{member.rank}" if member.rank else name


def _is_gateway(order: InstanceOrder) -> bool:
    return order.service_type == GATEWAY_TYPE


def _moved(instance: Instance, lost: int, spare: int) -> Instance:
    """Return the instance with its members of one node on another."""
    members = (
        msgspec.structs.replace(member, node=spare) if member.node == lost else member
        for member in instance.members
    )
    return msgspec.structs.replace(instance, members=tuple(members))
