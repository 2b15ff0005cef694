"""What is left over between measured deployments and predictions, read at a new place: kriging, in levels.

ln(measured / predicted) of a deployment is thought of as a sum of errors, one for each level: all deployments of a serving mode share
one, those of an engine a second, those of an engine and a model another, down to one deployment at one version. Each has a
part that is the same at every load, and a part that is alike at like loads: a bell curve of the distance in the logarithms of users,
lengths and sizes. So the correction of a prediction is a weighted mean of what was left over of the deployments most like it, it
goes to none where nothing like it was measured, and its standard deviation is what such a sum leaves open (Gaussian process
regression; Rasmussen and Williams 2006, chapter 2). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aegis.planner.operations import Floats

Matrix: TypeAlias = NDArray[np.float64]

# What deployments have in common at each level; a level has all of those before it that it names.
LEVELS: Final = (
    ("mode",),
    ("mode", "backend"),
    ("mode", "backend", "kind"),
    ("mode", "backend", "model"),
    ("mode", "backend", "kind", "model"),
    ("mode", "backend", "system", "model"),
    ("mode", "backend", "system", "model", "formats"),
    ("mode", "backend", "system", "model", "formats", "split"),
    ("mode", "backend", "system", "model", "formats", "split", "version"),
)
OF_ITS_KIND: Final = 5  # the level whose deployments are counted behind a prediction
# Variance of what all rows of a site share and others do not: its nodes, versions and ways to measure. Not fitted: the rows that come
# along do not tell their sites.
ELSEWHERE: Final = 0.04
NEAREST: Final = 400  # deployments that are looked at for one question: more change nothing that is shown


class Place(Struct, frozen=True, kw_only=True):
    """Which deployment it is, but for its load."""

    mode: str  # a serving mode; another where it was not told how many workers there were
    backend: str
    kind: str  # class of the system
    system: str
    model: str  # what of a model decides its speed
    formats: str
    split: str  # of the worker that decides: TTFT of disaggregated serving is the prefill worker's, TPOT the decode worker's
    version: str  # of the engine; empty: not told


class Residual(Struct, frozen=True, kw_only=True):
    """What is left over of one deployment."""

    id: str
    place: Place
    at: tuple[float, ...]  # ln of users, isl, osl, and of the worker's GPUs and attention groups
    left: float  # ln(measured / predicted)
    weight: float = 1.0  # outliers count less


class Kernel(Struct, frozen=True, kw_only=True):
    """Variances of the errors."""

    same: tuple[float, ...]  # by level: of the part that is the same at all loads
    alike: tuple[float, ...]  # of the part that is alike at like loads
    lengths: tuple[float, ...]  # distances in `at` over which loads are alike
    noise: float  # between two measurements of the same
    widened: dict[
        str, float
    ] = {}  # by mode: factor on the standard deviation, such that 80 % of the fit half lie within 80 %


class Read(NamedTuple):
    """The error that is expected, and its standard deviation, with that of a measurement; one element a load."""

    mean: Floats
    spread: Floats


def covariance(kernel: Kernel, shared: NDArray[np.bool_], one: Matrix, other: Matrix) -> Matrix:
    """Return the covariance of errors, (n, m).

    Args:
        kernel: the variances.
        shared: (levels, n or 1, m), what they have in common.
        one: (n, features).
        other: (m, features).
    """
    scale = np.array(kernel.lengths)
    apart = ((one / scale)[:, None, :] - (other / scale)[None, :, :]) ** 2
    alike = np.exp(-0.5 * apart.sum(axis=-1))
    whole: Matrix = (
        np.tensordot(kernel.same, shared, axes=1) + np.tensordot(kernel.alike, shared, axes=1) * alike
    )
    return whole


class Places:
    """Places by numbers, one at each level: what they have in common is what numbers are equal."""

    def __init__(self, places: Iterable[Place]) -> None:
        places = tuple(places)
        distinct = {place: number for number, place in enumerate(dict.fromkeys(places))}
        self._numbers: list[dict[tuple[str, ...], int]] = [{} for _ in LEVELS]
        coded = [
            [
                known.setdefault(key, len(known))
                for key, known in zip(_keys(place), self._numbers, strict=True)
            ]
            for place in distinct
        ]
        which = [distinct[place] for place in places]
        self.codes = np.array(coded, dtype=np.int64).reshape(-1, len(LEVELS))[which].T

    def shared(self, place: Place) -> NDArray[np.bool_]:
        """Return what these have in common with another place, (levels, 1, n)."""
        keys = zip(_keys(place), self._numbers, strict=True)
        code = np.array([known.get(key, -1) for key, known in keys])
        equal: NDArray[np.bool_] = self.codes[:, None, :] == code[:, None, None]
        return equal

    def among(self) -> NDArray[np.bool_]:
        """Return what these have in common with each other, (levels, n, n)."""
        equal: NDArray[np.bool_] = self.codes[:, :, None] == self.codes[:, None, :]
        return equal


def _keys(place: Place) -> Iterator[tuple[str, ...]]:
    return (tuple(getattr(place, name) for name in level) for level in LEVELS)


class Table:
    """What was left over of deployments, ready to be searched."""

    def __init__(self, residuals: Iterable[Residual]) -> None:
        self.residuals = tuple(residuals)
        self.places = Places(each.place for each in self.residuals)
        self.at = np.array([each.at for each in self.residuals])

    def of_its_kind(self, place: Place) -> int:
        """Return how many deployments of this model, system and engine were measured."""
        return int(self.places.shared(place)[OF_ITS_KIND].sum())

    def nearest(self, kernel: Kernel, place: Place, at: Sequence[float] | Floats) -> list[int]:
        """Return which say most of a question, whatever its users, split and formats: at most NEAREST, in their order."""
        lengths = slice(1, 3)  # of prompts and answers
        loads = Kernel(same=kernel.same, alike=kernel.alike, lengths=kernel.lengths[lengths], noise=0.0)
        asked = np.array([list(at)[lengths]])
        close = covariance(loads, self.places.shared(place), asked, self.at[:, lengths])[0]
        return sorted(np.argsort(-close, kind="stable")[:NEAREST].tolist())


class Neighbours:
    """The deployments that are looked at for one kind of question; what can be solved before the question is known is.

    Args:
        kernel: the variances.
        residuals: what was left over.
        own: which of them are of the site that asks; default: none. These share an error of variance ELSEWHERE, which the
            question has as well, so that a site's own rows say more than the same measured elsewhere.
    """

    def __init__(self, kernel: Kernel, residuals: Sequence[Residual], own: Sequence[bool] = ()) -> None:
        self._kernel = kernel
        self.places = [each.place for each in residuals]
        self._known = Places(self.places)
        self._at = np.array([each.at for each in residuals])
        self._own = np.array(own or [False] * len(residuals), dtype=np.float64) * ELSEWHERE**0.5
        whole = covariance(kernel, self._known.among(), self._at, self._at) + np.outer(self._own, self._own)
        whole[np.diag_indices(len(whole))] += kernel.noise / np.array([each.weight for each in residuals])
        self.inverse: Matrix = np.linalg.inv(whole).astype(np.float64, copy=False)
        self.solved: Floats = self.inverse @ np.array([each.left for each in residuals])

    def read(self, place: Place, at: Matrix) -> Read:
        """Return what is expected of a deployment at loads (n, features)."""
        kernel = self._kernel
        asked = float(self._own.max())  # of a site that has measured
        cross = covariance(kernel, self._known.shared(place), at, self._at) + asked * self._own
        known = np.einsum("ij,ij->i", cross @ self.inverse, cross)
        whole = sum(kernel.same) + sum(kernel.alike) + asked**2
        left = np.maximum(whole - known, 0.0) + kernel.noise
        return Read(cross @ self.solved, kernel.widened.get(place.mode, 1.0) * np.sqrt(left))
