"""While a job runs: more or fewer servers where somebody wishes so, and a spare node in the place of a lost one."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.errors import AegisError, ConfigError, NotFoundError, RegistryUnreachable
from aegis.files import write_atomically
from aegis.fleet.order import fleet_file
from aegis.fleet.progress import members_of
from aegis.registry.model import Granted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from aegis.fleet.launchers import Agents
    from aegis.fleet.progress import Progress
    from aegis.fleet.roster import Roster
    from aegis.registry.client import RegistryClient
    from aegis.registry.model import Asked, Watched, Wish
    from aegis.runs import RunDir

LOST_SECONDS: Final = 60.0  # without a word a node is lost
COMING_SECONDS: Final = 180.0  # for its first word: thousands of agents may start slowly
ASK_SECONDS: Final = 5.0  # between two looks at nodes, while some instance is out of sight
NODE_LOST: Final = "node_lost"  # of AEGIS_AGENT_POLICY: another patience than LOST_SECONDS
NAMES_SHOWN: Final = 5


class Growth:
    """Follows the wishes and the nodes of a launch, and gives its agents new orders.

    Args:
        roster: what runs where.
        run: the run directory, with the file of all orders.
        agents: they start again from that file.
        say: gets a line for each thing that a person wants to know.
        patience: seconds without a word after which a node is lost.
    """

    def __init__(
        self,
        roster: Roster,
        run: RunDir,
        agents: Agents,
        say: Callable[[str], None],
        patience: float = LOST_SECONDS,
    ) -> None:
        self.roster = roster
        self._run, self._agents, self._say = run, agents, say
        self._patience = patience
        self._began = time.monotonic()
        self._asked = -math.inf  # when nodes were looked at last
        self._untold: set[int] = set()  # nodes whose orders the registry may not have
        self._mourned: set[int] = set()  # lost, and said so

    def step(self, client: RegistryClient, seen: Watched, progress: Progress) -> bool:
        """Do what is to be done now; True when other instances are wanted than before, or in other places.

        Raises:
            RegistryUnreachable: the rest is done next time.
        """
        if seen.reset:  # it may have been started again, and remembers no orders
            self._untold |= {number for number, order in enumerate(self.roster.orders) if order.version}
        for asked in seen.wishes or ():
            self._grant(client, asked, progress)
        self.roster.release(set(progress.services))
        self._replace_lost(client, progress)
        changed = self.roster.flush()
        if changed:
            self._untold |= changed
            progress.follow(members_of(self.roster.orders), self.roster.wanted)
            self._write()
        for number in sorted(self._untold):
            order = self.roster.orders[number]
            client.order(order.node, msgspec.json.encode(order))
            self._untold.discard(number)
        return bool(changed)

    def unstaged(self, node: str) -> None:
        """Count no more on a node that lacks what servers need, if none was to run there."""
        number = self.roster.numbers.get(node)
        if number in self.roster.spares:
            self.roster.lost.add(number)
            self._say(f"spare node {node} will not do: not all is staged there")

    def goes_on(self, client: RegistryClient, progress: Progress) -> bool:
        """Tell whether the job has something to wait for, although nothing is left that serves.

        Either servers that leave have yet to answer what they have; or a node has just gone silent, and a spare one can
        take its place.
        """
        if self.roster.leaving:
            return True
        if not self.roster.spares:
            return False
        nodes = self.roster.nodes_of(name for name in progress.wanted if name in self.roster.instances)
        beat = 3 * max((self.roster.orders[number].push_interval for number in nodes), default=1.0)
        try:
            ages = self._ages(client)
        except RegistryUnreachable:
            return True
        return any(ages.get(number, 0.0) > beat or number in self._given_up for number in nodes)

    # -- wishes

    def _grant(self, client: RegistryClient, asked: Asked, progress: Progress) -> None:
        try:
            granted = self._scale(asked.wish, progress)
        except AegisError as error:
            granted = Granted(problem=error.message, hint=error.hint or "")
        with contextlib.suppress(NotFoundError):  # forgotten meanwhile: nobody waits for the answer
            client.answer(asked.id, granted)

    def _scale(self, wish: Wish, progress: Progress) -> Granted:
        """Change the number of servers of a model.

        Raises:
            AegisError: it cannot be.
        """
        roster = self.roster
        model = roster.model(wish.model)
        before = roster.count(model)
        if not wish.instances and before == len(roster.wanted) and not wish.force:
            raise ConfigError(
                f"no server of any model would be left, and the job would end: {wish.model} is its only one",
                hint="--force does it; `aegis shutdown` ends a job",
            )
        starting, leaving = roster.scale(
            model, wish.instances, wish.grace, progress.broken, _starts(progress)
        )
        progress.forget(starting)
        if starting or leaving:
            words = [f"{_names(starting)} start{'s' * (len(starting) == 1)}"] if starting else []
            words += [f"{_names(leaving)} leave{'s' * (len(leaving) == 1)}"] if leaving else []
            self._say(f"{wish.model}: {wish.instances} instead of {before} wished for: {', '.join(words)}")
        return Granted(starting=tuple(starting), leaving=tuple(leaving))

    # -- nodes

    @property
    def _given_up(self) -> set[int]:
        return {self.roster.numbers[name] for name in self._agents.given_up if name in self.roster.numbers}

    def _replace_lost(self, client: RegistryClient, progress: Progress) -> None:
        """Let a spare node take the place of each one that is lost; where there is none, nothing is done."""
        roster = self.roster
        suspects = roster.nodes_of(_out_of_sight(progress, roster.wanted))
        given_up = self._given_up & roster.nodes_of(roster.wanted)
        now = time.monotonic()
        if not (suspects or given_up) or now - self._asked < ASK_SECONDS:
            return
        self._asked = now
        ages = self._ages(client)
        since = now - self._began
        for number in sorted((suspects | given_up) - roster.lost):
            age = ages.get(number)
            silent = since > max(self._patience, COMING_SECONDS) if age is None else age > self._patience
            if number not in given_up and not silent:
                continue
            why = "its agent was given up" if number in given_up else _silence(age)
            self._replace(number, why, ages, progress)

    def _replace(self, lost: int, why: str, ages: dict[int, float], progress: Progress) -> None:
        roster = self.roster
        name = roster.fleet.hosts[lost].name
        usable = [each for each in roster.spares if each not in self._given_up]
        spare = min(usable, key=lambda each: ages.get(each, math.inf), default=None)
        if spare is None or ages.get(spare, math.inf) > self._patience / 2:
            if lost not in self._mourned:
                self._mourned.add(lost)
                self._say(f"node {name} is lost ({why}), and no spare node is left")
            return
        moved = roster.move(lost, spare, _starts(progress))
        progress.forget(moved)
        self._agents.given_up.add(name)
        starts = f"{_names(moved)} start{'s' * (len(moved) == 1)}"
        self._say(f"node {name} is lost ({why}): {starts} on node {roster.fleet.hosts[spare].name}")

    def _ages(self, client: RegistryClient) -> dict[int, float]:
        """Return how long ago each node that ever did told of itself, in seconds."""
        return {
            self.roster.numbers[seen.node]: seen.age
            for seen in client.nodes()
            if seen.node in self.roster.numbers
        }

    def _write(self) -> None:
        """Bring the file up to date, from which agents start again."""
        try:
            write_atomically(self._run.fleet, fleet_file(self.roster.orders))
        except OSError as error:
            self._say(f"warning: {self._run.fleet} cannot be written: {error.strerror}")
        else:
            self._agents.outdated = True


def _out_of_sight(progress: Progress, wanted: Iterable[str]) -> list[str]:
    """Return the instances of which some member is unknown, or not heard of by the registry."""
    known = progress.services
    return [
        name
        for name in wanted
        if any(
            each not in known or known[each].status == "unhealthy" for each in progress.members.get(name, ())
        )
    ]


def _starts(progress: Progress) -> dict[str, int]:
    """Return how often each instance was started, as far as it is known."""
    starts: dict[str, int] = {}
    for service in progress.services.values():
        generation, name = service.metadata.get("generation"), service.metadata.get("instance")
        if isinstance(generation, int) and isinstance(name, str):
            starts[name] = max(generation, starts.get(name, 0))
    return starts


def _silence(age: float | None) -> str:
    return "it never said anything" if age is None else f"no word from it for {age:.0f} s"


def _names(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown or "nothing"
