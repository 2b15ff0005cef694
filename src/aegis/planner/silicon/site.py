"""A site's own measured deployments: what is left over of them, and what that gains where the site did not measure."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.silicon.deployments import flaw
from aegis.planner.silicon.kriging import Neighbours, Table
from aegis.planner.silicon.measurements import Figure
from aegis.planner.silicon.whole import left_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats
    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.fitted import Errors, Fitted
    from aegis.planner.silicon.kriging import Matrix, Residual


class Gain(NamedTuple):
    """Errors of one figure, |predicted / measured - 1|, (rows,); a row's own measurement never counts."""

    before: Floats  # by the deployments that come along
    loads: Floats  # by the site's other rows as well
    deployments: Floats  # by those of the site's rows that are of other deployments


class Learnt(NamedTuple):
    """What a site's rows of one model on one system with one engine say."""

    key: tuple[str, str, str]  # system, engine, model
    ttft_rows: tuple[Residual, ...]
    tpot_rows: tuple[Residual, ...]
    ttft: Gain
    tpot: Gain

    @property
    def deployments(self) -> int:
        """How many deployments these rows are of."""
        return len({each.place for each in self.tpot_rows})


class Site(NamedTuple):
    """What a table taught, and how many of its rows did not count, by reason."""

    learnt: list[Learnt]
    left_out: dict[str, int]


def learn(rows: Iterable[Deployment], known: Fitted) -> Site:
    """Return what rows add to what is known."""
    fair: dict[tuple[float, float], Deployment] = {}
    left_out: Counter[str] = Counter()
    there = {each.id for each in known.tpot.residuals}
    for row in rows:
        why = "it comes along already" if row.id in there else flaw(row)
        if why or row.measurement in fair:
            left_out[why or "the same measurement once more"] += 1
        else:
            fair[row.measurement] = row
    groups = {
        key: left_over(group, known) for key, group in groupby(sorted(fair.values(), key=_key), key=_key)
    }
    if silent := len(fair) - sum(len(tpot) for _, tpot in groups.values()):
        left_out["there is no prediction"] = silent
    gains = [
        iter(gained(errors, [each for group in groups.values() for each in group[figure]]))
        for figure, errors in enumerate((known.ttft, known.tpot))
    ]
    learnt = [
        Learnt(key, tuple(ttft), tuple(tpot), *(_columns(islice(each, len(tpot))) for each in gains))
        for key, (ttft, tpot) in groups.items()
        if tpot
    ]
    return Site(learnt, dict(left_out))


def gained(known: Errors, site: Sequence[Residual]) -> Matrix:
    """Return the errors of a site's rows in their order, (rows, columns of `Gain`)."""
    errors = np.zeros((len(site), len(Gain._fields)))
    ordered = sorted(range(len(site)), key=lambda row: _kind(site[row]))
    for _, group in groupby(ordered, key=lambda row: _kind(site[row])):
        asked = list(group)
        errors[asked] = list(_of_kind(known, site, asked))
    return errors


def _of_kind(known: Errors, site: Sequence[Residual], asked: Sequence[int]) -> Iterator[list[float]]:
    """Yield the errors of rows that the same deployments are looked at for, as `Figure.read` does."""
    shipped = Figure(known)
    table = Table([*site, *known.residuals])
    first = site[asked[0]]
    kernel = known.kernels[first.place.mode]
    near = table.nearest(kernel, first.place, first.at)
    chosen = np.array(sorted({*asked, *near}))
    of_site = chosen < len(site)
    neighbours = Neighbours(kernel, table, chosen.tolist(), of_site.tolist())
    for row in asked:
        own = site[row]
        before = shipped.read(own.place, np.array([own.at]), partial(float, own.share)).mean[0] - own.left
        same = np.array([table.residuals[each].place == own.place for each in chosen])
        blocks = chosen == row, of_site & same
        yield [_share(before), *(_share(_less(neighbours, block, chosen == row)) for block in blocks)]


def _less(neighbours: Neighbours, block: NDArray[np.bool_], row: NDArray[np.bool_]) -> float:
    """Return ln(predicted / measured) of a row as those outside a block that it is in predict it.

    The inverse of the whole covariance knows this of every block (Rasmussen and Williams 2006, 5.4.2, for single rows).
    """
    inverse = neighbours.inverse[np.ix_(block, block)]
    return -float(np.linalg.solve(inverse, neighbours.solved[block])[row[block]][0])


def _share(logarithm: float) -> float:
    return abs(float(np.exp(logarithm)) - 1)


def _columns(errors: Iterable[Floats]) -> Gain:
    return Gain(*np.array(list(errors)).T)


def _key(row: Deployment) -> tuple[str, str, str]:
    return row.system, row.backend, row.model


def _kind(row: Residual) -> tuple[object, ...]:
    """Return what rows have in common that the same deployments are looked at for."""
    return row.place.mode, row.place.backend, row.place.system, row.place.model, *row.at[1:3]
