"""The store against a model that is too simple to be wrong (and too slow to be used)."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aegis.registry.model import Report, Service
from aegis.registry.store import Store

from .conftest import Clock, push

IDS = st.sampled_from([f"s{number}" for number in range(8)])
NODES = st.sampled_from(["n1", "n2", "n3"])
TYPES = st.sampled_from(["vllm", "sim"])
STATUS = st.sampled_from(["starting", "healthy", "unhealthy", "draining", "stopped", "failed"])
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "k", 7]),
        "load": st.integers(0, 3),
        "instance": st.sampled_from(["i", "j"]),
        "generation": st.integers(0, 3),
        "members": st.integers(1, 2),
    },
)
REPORTS = st.builds(
    Report,
    service_id=IDS,
    host=st.just("h"),
    port=st.integers(1, 2),
    service_type=TYPES,
    status=STATUS,
    age=st.integers(0, 40).map(float),
    metadata=METADATA,
)
STALE, REMOVE = 30, 100


class Known:
    def __init__(self, report: Report, node: str, seen: float) -> None:
        self.report, self.node, self.seen, self.stale = report, node, seen, False

    @property
    def status(self) -> str:
        return (
            "unhealthy"
            if self.stale and self.report.status not in ("stopped", "failed")
            else self.report.status
        )


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Store(
            wall=self.clock.wall,
            monotonic=self.clock.monotonic,
            stale_after=STALE,
            remove_after=REMOVE,
            revision=10,
            history=6,
        )
        self.known: dict[str, Known] = {}
        self.pushed: dict[str, float] = {}
        self.wishes: set[str] = set()
        self.replica: dict[str, Service] = {}
        self.watched = 10

    @rule(node=NODES, reports=st.lists(REPORTS, max_size=5, unique_by=lambda r: r.service_id))
    def push(self, node: str, reports: list[Report]) -> None:
        self.store.apply(push(node, *reports))
        self.pushed[node] = self.clock.now
        for service_id in [i for i, known in self.known.items() if known.node == node]:
            if service_id not in {report.service_id for report in reports}:
                self.forget(service_id)
        for report in reports:
            self.known[report.service_id] = Known(report, node, self.clock.now - report.age)
            if report.status in ("draining", "stopped", "failed"):
                self.wishes.discard(report.service_id)

    @rule(seconds=st.integers(1, 50))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds
        self.store.sweep()
        for service_id, known in list(self.known.items()):
            silence = self.clock.now - self.pushed[known.node]
            known.stale = silence >= STALE
            if silence >= REMOVE:
                self.forget(service_id)

    @rule(service_id=IDS)
    def remove(self, service_id: str) -> None:
        assert (self.store.remove(service_id) is not None) == (service_id in self.known)
        self.forget(service_id)

    @rule(service_id=IDS)
    def drain(self, service_id: str) -> None:
        assert self.store.drain(service_id) == (service_id in self.known)
        if service_id in self.known and self.known[service_id].status not in (
            "draining",
            "stopped",
            "failed",
        ):
            self.wishes.add(service_id)

    @rule()
    def watch(self) -> None:
        answer = self.store.changed_since(self.watched)
        if answer.reset:
            self.replica.clear()
        for service in answer.services:
            self.replica[service.service_id] = service
        for service_id in answer.removed:
            self.replica.pop(service_id, None)
        self.watched = answer.revision
        assert self.replica.keys() == self.known.keys()
        for service_id, service in self.replica.items():
            current = self.store.get(service_id)
            assert current
            assert service.status == current.status
            assert without_load(service.metadata) == without_load(current.metadata)

    @rule(node=NODES)
    def acknowledge(self, node: str) -> None:
        answer = self.store.acknowledge(node)
        here = {i for i, known in self.known.items() if known.node == node}
        assert set(answer.drain) == self.wishes & here
        newest: dict[str, int] = {}
        for known in self.known.values():
            if started := generation(known):
                newest[started[0]] = max(newest.get(started[0], 0), started[1])
        mine = {started[0] for i in here if (started := generation(self.known[i]))}
        assert answer.generations == {instance: newest[instance] for instance in mine}

    @invariant()
    def every_question_has_the_models_answer(self) -> None:
        for model in (None, "m", "k"):
            for service_type in (None, "vllm", "sim"):
                matching = {
                    i: known
                    for i, known in self.known.items()
                    if model in (None, known.report.metadata.get("model"))
                    and service_type in (None, known.report.service_type)
                }
                found = self.store.select(service_type=service_type, model=model)
                assert {s.service_id: s.status for s in found} == {i: k.status for i, k in matching.items()}
                healthy = self.store.healthy(service_type=service_type, model=model, timeout=20)
                assert {s.service_id for s in healthy} == {
                    i for i, k in matching.items() if k.status == "healthy" and self.clock.now - k.seen < 20
                }

    def forget(self, service_id: str) -> None:
        self.known.pop(service_id, None)
        self.wishes.discard(service_id)


def without_load(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "load"}


def generation(known: Known) -> tuple[str, int] | None:
    metadata = known.report.metadata
    if {"instance", "generation", "members"} <= metadata.keys() and metadata["members"] > 1:
        return metadata["instance"], metadata["generation"]
    return None


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
