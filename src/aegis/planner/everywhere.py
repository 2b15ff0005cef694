"""One question asked of many machines: what each would need, or deliver."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import AegisError, ConfigError, DeploymentError, Problem
from aegis.planner.checks import check
from aegis.planner.defaults import fill
from aegis.planner.models.resolve import find_model
from aegis.planner.plan import questions, run
from aegis.planner.problem import BACKENDS, Tuning
from aegis.planner.search.pick import Known, by_confidence
from aegis.planner.size import Sizing, size
from aegis.planner.solve import BY_BACKEND
from aegis.planner.systems import load_system, system_names
from aegis.planner.task import TOP_N

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.calibrate import Calibrations
    from aegis.planner.estimator import Estimator
    from aegis.planner.plan import Plan
    from aegis.planner.problem import DatabaseMode, Load, Mtp, ServingMode, Targets
    from aegis.planner.size import Need
    from aegis.planner.task import Question
    from aegis.spec.platform import Platform

EVERY = "any"  # the name that stands for all systems
SEARCHED_GPUS = 128  # that one replica may take while machines are compared


class Place(Struct, frozen=True, kw_only=True):
    """A kind of nodes that a user may ask for."""

    name: str  # of the platform; of the system itself where no platform is meant
    system: str
    gpus_per_node: int
    most_nodes: int | None = None  # that its largest queue gives


class Wish(Struct, frozen=True, kw_only=True):
    """What is asked of every place alike."""

    model: str
    load: Load
    targets: Targets
    estimator: Estimator
    decode_system: str | None = None
    backend: str | None = None
    backend_version: str | None = None
    tuning: Tuning = Tuning()
    mtp: Mtp | None = None
    top_n: int = TOP_N
    modes: tuple[ServingMode, ...] = ("agg", "disagg")
    database_mode: DatabaseMode = "SILICON"
    calibration: Calibrations = ()
    where: Callable[[str], str] = str  # key -> the flag that it stands for


class Offer(Struct, frozen=True, kw_only=True):
    """What a place answers."""

    place: Place
    sizing: Sizing | None = None
    uncertainty: float = 0.0  # relative, of an estimated system
    notes: tuple[str, ...] = ()
    why_none: str | None = None


def platform_places(platforms: Iterable[Platform]) -> tuple[Place, ...]:
    """Return a place for every kind of devices of every platform; platforms that name none have no place."""
    return tuple(
        Place(
            name=platform.name,
            system=system,
            gpus_per_node=platform.node.devices or load_system(system).gpus_per_node,
            most_nodes=max((queue.max_nodes for queue in platform.queues if queue.max_nodes), default=None),
        )
        for platform in platforms
        for system in platform.systems
    )


def system_places(names: Iterable[str]) -> tuple[Place, ...]:
    """Return places that are a system by itself.

    Raises:
        ConfigError: unknown system.
    """
    systems = [load_system(name) for name in names]
    return tuple(
        Place(name=each.name, system=each.name, gpus_per_node=each.gpus_per_node) for each in systems
    )


def sizes(
    places: Sequence[Place], wish: Wish, need: Need, *, tell: Callable[[str], None] | None = None
) -> tuple[Offer, ...]:
    """Return what every place would need for a load, those with the fewest node-hours (or nodes) first."""
    offers = []
    for place in places:
        if tell:
            tell(place.system)
        offers.append(_offer(place, wish, need))
    return tuple(sorted(offers, key=lambda each: math.inf if each.sizing is None else each.sizing.nodes))


def ask(place: Place, wish: Wish, total_gpus: int) -> Plan:
    """Return the plan of one place.

    Raises:
        AegisError: the model, its formats or the backend are not for this place.
    """
    asked = asked_of(place.system, wish, total_gpus, node_gpus=place.gpus_per_node)
    return run(fill(each for each in asked if each.mode in wish.modes), compared=True)


def check_load(wish: Wish, total_gpus: int = 1) -> tuple[Problem, ...]:
    """Return what is wrong with a wish wherever it is asked."""
    found = [problem for question in asked_of("", wish, total_gpus) for problem in check(question)]
    try:
        find_model(wish.model)
    except ConfigError as error:
        found.append(Problem(wish.where("model"), error.message, error.hint))
    return tuple(dict.fromkeys(found))


def asked_of(
    system: str, wish: Wish, total_gpus: int, *, node_gpus: int | None = None
) -> tuple[Question, ...]:
    """Return the questions of a wish on one system.

    Raises:
        ConfigError: unknown backend.
    """
    return questions(
        wish.model,
        total_gpus,
        system,
        decode_system=wish.decode_system,
        backend=wish.backend,
        backend_version=wish.backend_version,
        node_gpus=node_gpus,
        load=wish.load,
        targets=wish.targets,
        tuning=wish.tuning,
        mtp=wish.mtp,
        top_n=wish.top_n,
        estimator=wish.estimator,
        database_mode=wish.database_mode,
        calibration=wish.calibration,
        where=wish.where,
    )


class Ranked(Struct, frozen=True, kw_only=True):
    """What one system makes of a wish."""

    system: str
    plan: Plan | None = None
    uncertainty: float = 0.0  # relative, of an estimated system
    why_none: str | None = None

    @property
    def throughput(self) -> float:
        """Output tokens/s of each of all GPUs; below 0 where the targets are missed, -inf where nothing is found."""
        if self.plan is None or self.plan.chosen is None:
            return -math.inf
        found = self.plan.throughput(self.plan.chosen)
        return found if self.plan.meets_targets else found - math.inf

    @property
    def known(self) -> Known:
        """The throughput, and how well it is known."""
        best = self.plan.best if self.plan else None
        return Known(self.throughput, best.spread if best else 0.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the best configuration; what is said of other backends is left out."""
        if self.plan is None or self.plan.chosen is None or self.plan.best is None:
            return ()
        others = set(BACKENDS) - {each.backend for each in self.plan.best.workers}
        notes = self.plan.answers[self.plan.chosen].notes
        return tuple(
            each for each in notes if each.partition(" on ")[0] not in others and BY_BACKEND not in each
        )


def rank(wish: Wish, total_gpus: int, *, tell: Callable[[str], None] | None = None) -> tuple[Ranked, ...]:
    """Return every system's plan for a wish, the most tokens/s of a GPU first.

    Raises:
        DeploymentError: what is asked cannot be anywhere.
    """
    problems = check_load(wish, total_gpus)
    if problems:
        raise DeploymentError(problems)
    found = []
    for name in system_names():
        if tell:
            tell(name)
        found.append(_ranked(name, wish, total_gpus))
    return tuple(by_confidence(found, lambda each: each.known))


def _ranked(name: str, wish: Wish, total_gpus: int) -> Ranked:
    system = load_system(name)
    try:
        plan = ask(Place(name=name, system=name, gpus_per_node=system.gpus_per_node), wish, total_gpus)
    except AegisError as error:
        return Ranked(system=name, why_none=error.message)
    reasons = (answer.why_none for answer in plan.answers if answer.why_none)
    return Ranked(
        system=name,
        plan=plan,
        uncertainty=system.uncertainty if system.estimated else 0.0,
        why_none=None if plan.meets_targets else next(reasons, "nothing found"),
    )


def _offer(place: Place, wish: Wish, need: Need) -> Offer:
    system = load_system(place.system)
    try:
        plan = ask(place, wish, SEARCHED_GPUS)
    except AegisError as error:
        return Offer(place=place, why_none=error.message)
    candidates: list[Candidate] = [each for answer in plan.answers for each in answer.candidates]
    sizing = size(candidates, need=need, targets=wish.targets, gpus_per_node=place.gpus_per_node)
    reasons = (answer.why_none for answer in plan.answers if answer.why_none)
    return Offer(
        place=place,
        sizing=sizing,
        uncertainty=system.uncertainty if system.estimated else 0.0,
        notes=tuple(dict.fromkeys(note for answer in plan.answers for note in answer.notes)),
        why_none=None if sizing else next(reasons, "nothing meets the targets"),
    )
