"""The fit of the mechanism: factors of operations and the host's time, from the fit half of the measured deployments.

For each row the planner is asked, without corrections, how long its steps take by kind of operation: of a step that decodes and of one
that reads a prompt as well. TTFT and TPOT follow from these as in `estimate.aggregated`; factors and the host's ms are those that bring
them nearest to what was measured (least squares of the logarithm, linear beyond outliers), each pulled to none by a normal prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from aegis.errors import AegisError
from aegis.planner.estimate.aggregated import whole_requests
from aegis.planner.estimate.closed_loop import Times, Turns, further, ttft, turns
from aegis.planner.estimate.host import Host
from aegis.planner.problem import BACKENDS, Load
from aegis.planner.silicon.deployments import flaw, in_fit_half, shipped
from aegis.planner.silicon.mechanism import CLASSES, KINDS, Mechanism, class_of
from aegis.planner.silicon.predict import batch_of
from aegis.planner.single import kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats
    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.kriging import Matrix
    from aegis.planner.silicon.predict import Workers

_SIZE: Final = len(KINDS)
_STEP, _REQUEST, _FIRST, _WAITS = range(
    2 * _SIZE, 2 * _SIZE + 4
)  # after the factors of decode and of prefill
_OF_ENGINE, _OF_CLASS = (
    2 * _SIZE + 4,
    2 * _SIZE + 2,
)  # parameters: what a class of systems changes has no first and waits
_UNIT: Final = np.array([1.0, 0.005, 30.0, 1.0])  # ms, ms, ms, steps where a parameter is 0
# Standard deviations of the priors, of ln: of an engine, and of a class of systems from its engine.
_PRIOR_ENGINE: Final = np.array([0.3] * (2 * _SIZE) + [1.5, 1.5, 0.7, 1.5])
_PRIOR_CLASS: Final = np.array([0.15] * (2 * _SIZE) + [0.5, 0.5])
_PRIOR_VERSION: Final = 0.5  # of the host's ms of steps and requests, of a version from its engine
_START: Final = np.array([0.0] * (2 * _SIZE) + [-1.0, -1.0, 0.0, -1.0])
_TPOT_ERROR, _TTFT_ERROR = 0.12, 0.3  # of ln; beyond it residuals count linearly
_KNOWN_CLASSES: Final = CLASSES[:2]  # of the others nothing was measured: they follow their engine


# Where the parameters of engines and of classes end; those of versions follow.
_ENGINES_END: Final = len(BACKENDS) * _OF_ENGINE
_CLASSES_END: Final = _ENGINES_END + len(BACKENDS) * len(_KNOWN_CLASSES) * _OF_CLASS


class ByKind(NamedTuple):
    """Step times by kind of operation, ms; (rows, kinds)."""

    decode: Matrix  # a step without prompts
    read: Matrix  # of a step that reads a prompt: operations over its tokens
    beside: Matrix  # and those that answer others
    read_first: Matrix  # the same while all users wait for their first token
    beside_first: Matrix


class Steps(NamedTuple):
    """The steps of rows and what was measured; one row each."""

    times: ByKind
    turns: Turns
    batch: Floats
    ttft: Floats  # measured
    tpot: Floats
    engine: np.ndarray  # index
    kind: np.ndarray  # index of the class of systems
    version: np.ndarray  # index into `versions`
    versions: tuple[tuple[str, str], ...]  # engines with their versions; empty: not told


def rows(deployments: Iterable[Deployment] | None = None) -> list[Deployment]:
    """Return what may be fitted to: rows of the fit half that can be right, each measurement once.

    Of copies the one that tells most of its workers is kept.
    """
    best: dict[tuple[float, float], Deployment] = {}
    for row in shipped() if deployments is None else deployments:
        if not in_fit_half(row.id) or flaw(row):
            continue
        known = best.get(row.measurement)
        if known is None or (not known.decode_workers and row.decode_workers):
            best[row.measurement] = row
    return list(best.values())


def steps(deployments: Sequence[Deployment], workers: Workers) -> Steps:
    """Return the step times of aggregated rows that can be answered, without corrections."""
    found = []
    for row in deployments:
        if row.prefill is not None:
            continue
        try:
            worker = workers.of(row, row.split)
            found.append((row, worker, _steps(row, worker)))
        except AegisError:
            continue
    versions = tuple(sorted({(row.backend, row.version) for row, _, _ in found}))
    return Steps(
        ByKind(*(np.concatenate(each) for each in zip(*(times for _, _, (times, _) in found), strict=True))),
        Turns(*(np.concatenate(each) for each in zip(*(of for _, _, (_, of) in found), strict=True))),
        np.array([batch_of(row) for row, _, _ in found], dtype=np.float64),
        np.array([row.ttft for row, _, _ in found]),
        np.array([row.tpot for row, _, _ in found]),
        np.array([BACKENDS.index(row.backend) for row, _, _ in found]),
        np.array([CLASSES.index(class_of(worker.performance.system)) for _, worker, _ in found]),
        np.array([versions.index((row.backend, row.version)) for row, _, _ in found]),
        versions,
    )


def _steps(row: Deployment, worker: Worker) -> tuple[ByKind, Turns]:
    """Return step times and turns of one row."""
    load, batch = Load(isl=row.isl, osl=row.osl), np.array([batch_of(row)])
    of = turns(batch, np.array([row.isl]), isl=row.isl, steps=row.osl - 1)
    known = dict(kinds((*worker.graph.context, *worker.graph.generation)))

    def by_kind(parts: dict[str, float], *, generation: bool) -> Floats:
        sums = np.zeros((1, _SIZE))
        for name, ms in parts.items():
            if name in known and name.startswith("generation") == generation:
                sums[0, KINDS.index(known[name])] += ms
        return sums

    found = [by_kind(worker.breakdown("decode", load, batch=int(batch[0])), generation=True)]
    for requests in (of.running, of.started):
        answered = int(whole_requests(batch, requests)[0])
        mixed = worker.breakdown("mixed", load, batch=answered, context_tokens=row.isl)
        found += [by_kind(mixed, generation=False), by_kind(mixed, generation=True)]
    return ByKind(*found), of


def fit_mechanism(measured: Steps) -> tuple[dict[str, dict[str, Mechanism]], dict[str, dict[str, float]]]:
    """Return the mechanisms by engine and class of systems, and the factors on the host's time by engine and version."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - of the development environment

    start = np.concatenate(
        [np.tile(_START, len(BACKENDS)), np.zeros(_CLASSES_END - _ENGINES_END + len(measured.versions))]
    )
    prior = np.concatenate(
        [
            np.tile(_PRIOR_ENGINE, len(BACKENDS)),
            np.tile(_PRIOR_CLASS, len(BACKENDS) * len(_KNOWN_CLASSES)),
            [_PRIOR_VERSION] * len(measured.versions),
        ]
    )

    def residuals(parameters: Floats) -> Floats:
        ttft, tpot = predicted(parameters, measured)
        errors = np.concatenate(
            [np.log(tpot / measured.tpot) / _TPOT_ERROR, np.log(ttft / measured.ttft) / _TTFT_ERROR]
        )
        robust = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([robust, (parameters - start) / prior])

    found: Floats = least_squares(residuals, start, max_nfev=60).x
    mechanisms: dict[str, dict[str, Mechanism]] = {
        backend: {kind: _mechanism(found, engine, number) for number, kind in enumerate(CLASSES)}
        for engine, backend in enumerate(BACKENDS)
    }
    factors: dict[str, dict[str, float]] = {}
    for (backend, version), value in zip(measured.versions, found[_CLASSES_END:], strict=True):
        factors.setdefault(backend, {})[version] = round(float(np.exp(value)), 3)
    return mechanisms, factors


def predicted(parameters: Floats, of: Steps) -> tuple[Floats, Floats]:
    """Return TTFT and TPOT (ms) of rows: `estimate.aggregated` with a prompt in each mixed step."""
    values = _values(parameters)[of.engine, of.kind]
    decoding, reading = values[:, :_SIZE], values[:, _SIZE : 2 * _SIZE]
    pace = np.exp(parameters[_CLASSES_END:])[of.version]
    step, request = values[:, _STEP] * pace, values[:, _REQUEST] * pace

    def mixed(read: Matrix, beside: Matrix, requests: Floats) -> Floats:
        ms: Floats = (reading * read + decoding * beside).sum(axis=1) + step + request * requests
        return ms

    every = mixed(of.times.read, of.times.beside, of.turns.running)
    first = mixed(of.times.read_first, of.times.beside_first, of.turns.started)
    decode = (decoding * of.times.decode).sum(axis=1) + step + request * of.batch
    times = Times(start=first, waited=every, mixed=every, decode=decode)
    return ttft(of.turns, times) + values[:, _FIRST] + values[:, _WAITS] * decode, further(of.turns, times)


def _values(parameters: Floats) -> np.ndarray:
    """Return what parameters stand for, (engines, classes, parameters of an engine)."""
    engines, known = len(BACKENDS), len(_KNOWN_CLASSES)
    of_engine = parameters[:_ENGINES_END].reshape(engines, 1, _OF_ENGINE)
    of_class = parameters[_ENGINES_END:_CLASSES_END].reshape(engines, known, _OF_CLASS)
    values = np.repeat(of_engine, len(CLASSES), axis=1)
    values[:, :known, :_OF_CLASS] += of_class
    units = np.concatenate([np.ones(2 * _SIZE), _UNIT])
    scaled: np.ndarray = np.exp(values) * units
    return scaled


def _mechanism(parameters: Floats, engine: int, kind: int) -> Mechanism:
    values = [round(float(each), 4) for each in _values(parameters)[engine, kind]]
    return Mechanism(
        decode=dict(zip(KINDS, values[:_SIZE], strict=True)),
        prefill=dict(zip(KINDS, values[_SIZE : 2 * _SIZE], strict=True)),
        host=Host(first=values[_FIRST], waits=values[_WAITS], step=values[_STEP], request=values[_REQUEST]),
    )
