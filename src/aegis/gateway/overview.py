"""The dashboard at a gateway: all registries that it follows, as one.

A registry keeps the history of its job; a gateway only asks, and only while somebody looks. Figures of a model in
several registries are summed, percentiles weighted by their observations, for histograms are not told.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web
from msgspec.structs import replace

import aegis
from aegis.errors import AegisError
from aegis.registry.overview.history import at_once
from aegis.registry.overview.model import Model, Overview
from aegis.registry.overview.pages import Dashboard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.registry.overview.model import Error, Point

ERRORS: Final = 50
LOOK_SECONDS: Final = 2.0  # between two questions to the registries
ASK_SECONDS: Final = 2.0  # a registry that is slow holds the others up so long
GAP_SECONDS: Final = 90.0  # a point counts so long: those of hours ago are a minute apart


class Registry(Protocol):
    """What is asked of a registry's client."""

    url: str

    def overview(self) -> Overview:
        """Return its state."""
        ...

    def log(self, service_id: str, lines: int) -> str:
        """Return the end of an instance's log."""
        ...


class Sources(Protocol):
    """Who knows which registries are followed now."""

    @property
    def registries(self) -> Sequence[Registry]:
        """Their clients."""
        ...


def add_overview(app: web.Application, sources: Sources, *, logs: bool = False) -> None:
    """Add `/overview`, `/ui`, `/ui/events` and `/ui/log` to the pages of a gateway; who may ask is for these to say.

    Args:
        app: of the pages.
        sources: knows the registries.
        logs: whether logs are read with the tokens of the registries: not where everybody may ask.
    """
    Dashboard(Together(sources, logs=logs), LOOK_SECONDS).add_to(app)


class Together:
    """The states of all registries that are followed, as one."""

    def __init__(self, sources: Sources, *, logs: bool = False) -> None:
        self._sources, self._logs = sources, logs
        self._last: dict[str, Overview] = {}  # by URL
        self._asked: dict[str, asyncio.Task[Overview]] = {}  # the questions that are not answered yet

    async def overview(self) -> Overview:
        """Return the state; a registry that does not answer is shown as it was, with the problem."""
        registries = {each.url: each for each in self._sources.registries}
        for url in self._last.keys() - registries:
            del self._last[url]
        problems = await asyncio.gather(*(self._ask(each) for each in registries.values()))
        return merged(self._states(), tuple(filter(None, problems)), time.time())

    async def log(self, service: str, lines: int) -> str:
        """Return the end of an instance's log, or raise HTTPNotFound with the reason."""
        if not self._logs:
            raise web.HTTPNotFound(text="a gateway without keys shows no logs: see the registry's page")
        registries = {each.url: each for each in self._sources.registries}
        for url, state in self._last.items():
            prefix = _prefix(state) if len(self._last) > 1 else ""
            theirs = service.removeprefix(prefix)
            if url in registries and any(prefix + each.id == service for each in state.instances):
                try:
                    return await asyncio.to_thread(registries[url].log, theirs, lines)
                except AegisError as error:
                    raise web.HTTPNotFound(text=error.message) from None
        raise web.HTTPNotFound(text="there is no such instance")

    def _states(self) -> list[Overview]:
        states = list(self._last.values())
        return [_named(state, _prefix(state)) for state in states] if len(states) > 1 else states

    async def _ask(self, registry: Registry) -> str:
        """Ask a registry for its state; return why there is none."""
        task = self._asked.setdefault(
            registry.url, asyncio.ensure_future(asyncio.to_thread(registry.overview))
        )
        done, _ = await asyncio.wait({task}, timeout=ASK_SECONDS)
        if not done:
            return f"the registry at {registry.url} does not answer within {ASK_SECONDS:g} s"
        self._asked.pop(registry.url, None)
        try:
            self._last[registry.url] = task.result()
        except AegisError as error:
            return error.message
        return ""


def _prefix(state: Overview) -> str:
    """Return what tells the names of one registry from those of others: two jobs may both have an `m-0`."""
    return f"{state.jobs[0].handle}/" if state.jobs else ""


def _named(state: Overview, prefix: str) -> Overview:
    """Return a state with names that no other registry has."""
    return replace(
        state,
        instances=tuple(replace(each, id=prefix + each.id) for each in state.instances),
        nodes=tuple(
            replace(each, name=prefix + each.name, instances=tuple(prefix + name for name in each.instances))
            for each in state.nodes
        ),
        errors=tuple(replace(each, instance=prefix + each.instance) for each in state.errors),
    )


def merged(states: Sequence[Overview], problems: tuple[str, ...], now: float) -> Overview:
    """Return several states as one."""
    errors = sorted((error for state in states for error in state.errors), key=lambda error: error.time)
    jobs = {job.handle: job for state in states for job in state.jobs}
    return Overview(
        time=now,
        version=aegis.__version__,
        jobs=tuple(jobs.values()),
        models=_models(states),
        instances=tuple(each for state in states for each in state.instances),
        nodes=tuple(each for state in states for each in state.nodes),
        maps=tuple(each for state in states for each in state.maps),
        errors=tuple(_numbered(errors[-ERRORS:])),
        problems=problems + tuple(problem for state in states for problem in state.problems),
    )


def _numbered(errors: Iterable[Error]) -> Iterable[Error]:
    """Number errors so that a later one has a higher number, whichever registry told it."""
    number = 0
    for error in errors:
        number = max(number + 1, int(error.time * 1000))
        yield replace(error, number=number)


def _models(states: Sequence[Overview]) -> tuple[Model, ...]:
    by_name: dict[str, list[Model]] = {}
    for state in states:
        for model in state.models:
            by_name.setdefault(model.name, []).append(model)
    return tuple(_model(name, models) for name, models in sorted(by_name.items()))


def _model(name: str, models: Sequence[Model]) -> Model:
    if len(models) == 1:
        return models[0]
    statuses: Counter[str] = Counter()
    for model in models:
        statuses.update(model.statuses)
    return Model(
        name=name,
        instances=sum(model.instances for model in models),
        statuses=dict(statuses),
        now=at_once([model.now for model in models]),
        history=_history([model.history for model in models if model.history]),
    )


def _history(histories: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Return the points of the newest history, and what was before it, each with what the others say of that time."""
    if len(histories) < 2:  # noqa: PLR2004 - nothing to join
        return tuple(histories[0]) if histories else ()
    newest = max(histories, key=lambda points: points[-1].time)
    before = [point.time for points in histories for point in points if point.time < newest[0].time]
    times = [[point.time for point in points] for points in histories]
    found = []
    for moment in (*sorted(before), *(point.time for point in newest)):
        at = [bisect.bisect_right(each, moment) - 1 for each in times]
        told = [
            points[index]
            for points, index in zip(histories, at, strict=True)
            if index >= 0 and moment - points[index].time < GAP_SECONDS
        ]
        found.append(replace(at_once(told), time=moment))
    return tuple(found)
