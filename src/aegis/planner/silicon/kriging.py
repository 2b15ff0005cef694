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
OF_ITS_GROUP: Final = 2  # the level that a correction is taken at, or not
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
    share: float = 0.0  # of the mechanism in the prediction: ln(predicted / predicted without it)
    weight: float = 1.0  # outliers count less


class Kernel(Struct, frozen=True, kw_only=True):
    """Variances of the errors of one mode."""

    same: tuple[float, ...]  # by level: of the part that is the same at all loads
    alike: tuple[float, ...]  # of the part that is alike at like loads
    lengths: tuple[float, ...]  # distances in `at` over which loads are alike
    noise: float  # between two measurements of the same
    widened: float = 1.0  # factor on the standard deviation, such that 80 % of the fit half lie within 80 %
    further: float = 1.0  # the same once more, of systems that nobody measured
    apart: tuple[str, ...] = ()  # engines that are not corrected on such systems (`silicon.elsewhere`)

    @property
    def unknown(self) -> float:
        """Variance of an error, with that of a measurement, where nothing was measured."""
        return sum(self.same) + sum(self.alike) + self.noise


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
    apart = np.zeros((len(one), len(other)))
    # One feature at a time: with all of them in one array it takes twice as long.
    for left, right in zip((one / scale).T, (other / scale).T, strict=True):
        apart += np.subtract.outer(left, right) ** 2
    variances = np.array([kernel.same, kernel.alike])
    same, alike = (variances @ shared.reshape(len(shared), -1)).reshape(2, *shared.shape[1:])
    whole: Matrix = same + alike * np.exp(-0.5 * apart)
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

    def of(self, place: Place) -> NDArray[np.int64]:
        """Return the numbers of another place, (levels,); -1 where none of these is like it."""
        keys = zip(_keys(place), self._numbers, strict=True)
        return np.array([known.get(key, -1) for key, known in keys], dtype=np.int64)


def shared(codes: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return what places (levels, n) have in common with others (levels, m): (levels, n, m)."""
    equal: NDArray[np.bool_] = codes[:, :, None] == other[:, None, :]
    return equal


def group(place: Place) -> str:
    """Return the name of what corrections are taken for, or not: a mode, an engine and a class of systems."""
    return ", ".join(getattr(place, name) for name in LEVELS[OF_ITS_GROUP])


def _system(place: Place) -> tuple[str, str]:
    return place.mode, place.system


def _keys(place: Place) -> Iterator[tuple[str, ...]]:
    return (tuple(getattr(place, name) for name in level) for level in LEVELS)


class Table:
    """What was left over of deployments, ready to be searched."""

    def __init__(self, residuals: Iterable[Residual]) -> None:
        self.residuals = tuple(residuals)
        self.places = Places(each.place for each in self.residuals)
        self._systems = {_system(each.place) for each in self.residuals}
        self.at = np.array([each.at for each in self.residuals])
        self.left = np.array([each.left for each in self.residuals])
        self.weight = np.array([each.weight for each in self.residuals])

    def knows_system(self, place: Place) -> bool:
        """Tell whether deployments on this system were measured in this mode."""
        return _system(place) in self._systems

    def of_its_group(self, place: Place) -> NDArray[np.bool_]:
        """Tell which deployments are of this mode, engine and class of systems."""
        same: NDArray[np.bool_] = self.places.codes[OF_ITS_GROUP] == self.places.of(place)[OF_ITS_GROUP]
        return same

    def of_its_kind(self, place: Place) -> int:
        """Return how many deployments of this model, system and engine were measured."""
        return int((self.places.codes[OF_ITS_KIND] == self.places.of(place)[OF_ITS_KIND]).sum())

    def kind(self, place: Place) -> NDArray[np.int64]:
        """Return what decides which are the nearest, beside the lengths: (levels until OF_ITS_KIND,)."""
        return self.places.of(place)[: OF_ITS_KIND + 1]

    def nearest(self, kernel: Kernel, place: Place, at: Sequence[float] | Floats) -> list[int]:
        """Return which say most of a question, whatever its users, split and formats: at most NEAREST, in their order."""
        levels, lengths = slice(OF_ITS_KIND + 1), slice(1, 3)  # lengths of prompts and answers
        loads = Kernel(
            same=kernel.same[levels], alike=kernel.alike[levels], lengths=kernel.lengths[lengths], noise=0.0
        )
        common = shared(self.kind(place)[:, None], self.places.codes[levels])
        asked = np.array([list(at)[lengths]])
        close = covariance(loads, common, asked, self.at[:, lengths])[0]
        return sorted(np.argsort(-close, kind="stable")[:NEAREST].tolist())


class Neighbours:
    """The deployments that are looked at for one kind of question; what can be solved before the question is known is.

    Args:
        kernel: the variances.
        table: what was left over.
        chosen: which of them are looked at.
        own: which of these are of the site that asks; default: none. They share an error of variance ELSEWHERE, which the
            question has as well, so that a site's own rows say more than the same measured elsewhere.
    """

    def __init__(self, kernel: Kernel, table: Table, chosen: Sequence[int], own: Sequence[bool] = ()) -> None:
        self._kernel, self._table = kernel, table
        self._codes, self._at = table.places.codes[:, chosen], table.at[chosen]
        self._own = np.array(own or [False] * len(chosen), dtype=np.float64) * ELSEWHERE**0.5
        among = shared(self._codes, self._codes)
        whole = covariance(kernel, among, self._at, self._at) + np.outer(self._own, self._own)
        whole[np.diag_indices(len(whole))] += kernel.noise / table.weight[chosen]
        self.inverse: Matrix = np.linalg.inv(whole).astype(np.float64, copy=False)
        self.solved: Floats = self.inverse @ table.left[chosen]

    def read(self, place: Place, at: Matrix) -> Read:
        """Return what is expected of a deployment at loads (n, features)."""
        kernel = self._kernel
        asked = float(self._own.max())  # of a site that has measured
        common = shared(self._table.places.of(place)[:, None], self._codes)
        cross = covariance(kernel, common, at, self._at) + asked * self._own
        known = np.einsum("ij,ij->i", cross @ self.inverse, cross)
        left = np.maximum(kernel.unknown - kernel.noise + asked**2 - known, 0.0) + kernel.noise
        if self._table.knows_system(place):
            return Read(cross @ self.solved, kernel.widened * np.sqrt(left))
        said = 0.0 if place.backend in kernel.apart else 1.0
        return Read(said * (cross @ self.solved), kernel.widened * kernel.further * np.sqrt(left))
