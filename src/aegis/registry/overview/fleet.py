"""A fleet as it is shown, made of what a registry's store hears. No I/O."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

import aegis
from aegis.registry.model import JOB_TYPE, MAP_TYPE, NO_ENGINE
from aegis.registry.overview.history import (
    FINE_POINTS,
    POINT_SECONDS,
    History,
    Latencies,
    Meter,
    together,
)
from aegis.registry.overview.metadata import mapping, number, text, texts, whole, wholes
from aegis.registry.overview.model import Error, Instance, Job, Load, MapRun, Model, Node, Overview, Point

if TYPE_CHECKING:
    from aegis.registry.model import Change, Push, Service
    from aegis.registry.store import Store

ERRORS: Final = 50
TAIL_LINES: Final = 40
SERVING: Final = frozenset({"healthy", "unhealthy", "draining"})  # have a load
RUNS: Final = frozenset({MAP_TYPE, JOB_TYPE})  # no services of a node
MEMORY_SECONDS: Final = FINE_POINTS * POINT_SECONDS  # a model without instances is shown so long
UNTOLD: Final = Load()
NUMBER: Final = re.compile(r"\d+")


class Fleet:
    """Listens to a store, and says what there is to see.

    Args:
        store: of the registry; `tick` is to be called every POINT_SECONDS.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._wall, self._monotonic = store, store.wall, store.monotonic
        self._meters: dict[str, Meter] = {}
        self._models: dict[str, _ModelMemory] = {}
        self._errors: deque[Error] = deque(maxlen=ERRORS)
        self._count = 0
        self._told: dict[str, tuple[str, str, int]] = {}  # the last error of a service
        self._shown: dict[str, tuple[Service, Load, Instance]] = {}
        store.listener = self

    # What the store hears

    def heard(self, push: Push) -> None:
        """Take the load of a node's services."""
        now = self._monotonic()
        for report in push.services:
            if report.service_type in RUNS or not report.port:
                continue
            meter = self._meters.setdefault(report.service_id, Meter())
            started = number(report.metadata, "pid")
            news = meter.hear(mapping(report.metadata, "load"), started, now)
            if news:
                self._memory(text(report.metadata, "model")).latencies.add(news)

    def changed(self, change: Change) -> None:
        """Note what went wrong."""
        service = change.service
        name = service.service_id
        if change.removed:
            for known in (self._meters, self._told, self._shown):
                known.pop(name, None)
            return
        if service.status == "healthy":
            self._told.pop(name, None)
            return
        reason, tail = text(service.metadata, "reason"), texts(service.metadata, "tail")
        bad = service.status in {"unhealthy", "failed"} or (service.status == "starting" and tail)
        alike = (service.status, NUMBER.sub("", reason), whole(service.metadata, "restarts"))
        if not bad or not reason or self._told.get(name) == alike:
            return
        self._told[name] = alike
        self._count += 1
        error = Error(
            number=self._count,
            time=change.time,
            instance=name,
            model=text(service.metadata, "model"),
            status=service.status,
            text=reason,
            tail=tail[-TAIL_LINES:],
        )
        self._errors.append(error)

    # What is shown

    def tick(self) -> None:
        """Add a point to the history of each model."""
        now = self._wall()
        for model in self._look()[0].values():
            memory = self._memory(model.name)
            memory.history.add(replace(model.now, time=round(now, 1)))
            memory.latencies.turn()
            if model.instances:
                memory.seen = now
            elif now - memory.seen > MEMORY_SECONDS:
                del self._models[model.name]

    def overview(self) -> Overview:
        """Return everything there is to see."""
        models, nodes, instances, others = self._look()
        jobs = {each.service_id: _job(each) for each in others if each.service_type == JOB_TYPE}
        told = {job.handle for job in jobs.values()}
        silent = dict.fromkeys(each.job for each in instances if each.job and each.job not in told)
        return Overview(
            time=self._wall(),
            version=aegis.__version__,
            jobs=(*jobs.values(), *(Job(handle=handle, state="") for handle in silent)),
            models=tuple(models.values()),
            instances=tuple(instances),
            nodes=tuple(nodes),
            maps=tuple(_map_run(each) for each in others if each.service_type == MAP_TYPE),
            errors=tuple(self._errors),
        )

    def _look(self) -> tuple[dict[str, Model], list[Node], list[Instance], list[Service]]:
        """Return the models, nodes and instances there are, and the services that are none."""
        now, wall = self._monotonic(), self._wall()
        instances, others = [], []
        seen: dict[str, float] = {}  # by node
        for node, age, services in self._store.by_node():
            for service in services:
                if service.service_type in RUNS:
                    others.append(service)
                    continue
                instance = self._instance(service, node, now)
                instances.append(instance)
                seen[instance.node] = max(round(wall - age, 1), seen.get(instance.node, 0.0))
        nodes = _nodes(instances, seen)
        by_model: dict[str, list[Instance]] = {name: [] for name in self._models}
        for instance in instances:
            if instance.model and not instance.rank and instance.type not in NO_ENGINE:
                by_model.setdefault(instance.model, []).append(instance)
        models = {name: self._model(name, members, wall) for name, members in sorted(by_model.items())}
        return models, nodes, instances, others

    def _model(self, name: str, members: list[Instance], wall: float) -> Model:
        memory = self._memory(name)
        statuses, observed = Counter(each.status for each in members), memory.latencies.quantiles()
        now = Point(
            time=round(wall, 1),
            healthy=statuses["healthy"],
            **together([each.load for each in members]),
            first_token=observed.get("first_token"),
            inter_token=observed.get("inter_token"),
        )
        if replace(now, time=memory.now.time) == memory.now:
            now = memory.now  # nothing to tell
        memory.now = now
        return Model(
            name=name, instances=len(members), statuses=dict(statuses), now=now, history=memory.history.points
        )

    def _instance(self, service: Service, node: str, now: float) -> Instance:
        meter = self._meters.get(service.service_id)
        told = meter is not None and service.status in SERVING and meter.is_fresh(now)
        load = meter.load if meter and told else UNTOLD
        known = self._shown.get(service.service_id)
        if known and known[0] is service and known[1] is load:
            return known[2]
        instance = _instance(service, node, load)
        self._shown[service.service_id] = (service, load, instance)
        return instance

    def _memory(self, model: str) -> _ModelMemory:
        if model not in self._models:
            self._models[model] = _ModelMemory(self._wall())
        return self._models[model]


class _ModelMemory:
    """What is known of the past of a model."""

    def __init__(self, now: float) -> None:
        self.history = History()
        self.latencies = Latencies()
        self.now = Point(time=now)
        self.seen = now  # when it last had an instance


def _nodes(instances: list[Instance], seen: dict[str, float]) -> list[Node]:
    by_node: dict[str, list[Instance]] = {}
    for instance in instances:
        by_node.setdefault(instance.node, []).append(instance)
    return [
        Node(name=name, seen=seen[name], job=found[0].job, instances=tuple(each.id for each in found))
        for name, found in by_node.items()
    ]


def _instance(service: Service, node: str, load: Load) -> Instance:
    """Return what is shown of a service; `node` tells of it, for itself or for another registry."""
    metadata: dict[str, Any] = service.metadata
    return Instance(
        id=service.service_id,
        model=text(metadata, "model"),
        job=text(metadata, "job"),
        node=text(metadata, "node") or node,
        host=service.host,
        port=service.port,
        type=service.service_type,
        rank=whole(metadata, "rank"),
        status=service.status,
        since=number(metadata, "since"),
        seen=round(service.last_seen, 1),
        restarts=whole(metadata, "restarts"),
        reason=text(metadata, "reason"),
        devices=wholes(metadata, "devices"),
        load=load,
    )


def _job(service: Service) -> Job:
    metadata = service.metadata
    return Job(
        handle=text(metadata, "handle") or service.service_id,
        name=text(metadata, "name"),
        service=text(metadata, "service") or None,
        state=text(metadata, "state"),
        reason=text(metadata, "reason"),
        started=number(metadata, "started"),
        walltime_end=number(metadata, "walltime_end"),
        nodes=whole(metadata, "nodes"),
        gateways=texts(metadata, "gateways"),
        predecessor=text(metadata, "predecessor") or None,
        successor=text(metadata, "successor") or None,
        seen=round(service.last_seen, 1),
    )


def _map_run(service: Service) -> MapRun:
    metadata = service.metadata
    files_rate = number(metadata, "files_rate")  # of `map --files`, whose `rate` is in bytes
    return MapRun(
        id=service.service_id,
        text=text(metadata, "text"),
        host=service.host,
        done=whole(metadata, "done"),
        total=whole(metadata, "rows"),
        failed=whole(metadata, "failed"),
        rate=number(metadata, "rate") if files_rate is None else files_rate,
        eta=number(metadata, "eta"),
        seen=round(service.last_seen, 1),
    )
