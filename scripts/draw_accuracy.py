"""Make the tables and pictures of docs/accuracy.md again: how near predictions are to the fit half of the measured deployments.

Run in the project's environment, after `python scripts/fit_silicon.py`: `python scripts/draw_accuracy.py`. It takes some minutes and never
looks at the test half. What a row's own measurement says of it never counts: rows, deployments or models are left out of what remains in
turn, systems of the mechanism too.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from accuracy_pictures import bars, scatter
from accuracy_tables import (
    ANEW,
    ANEW_ALONE,
    FEW,
    SINGLE,
    counts,
    crossed,
    grouped,
    levels,
    mechanisms,
    parts,
    same_question,
    unproven,
    versions,
    widening,
)
from msgspec.structs import replace

from aegis.files import write_atomically
from aegis.planner.answer import spread_of_sum
from aegis.planner.estimate.host import Host
from aegis.planner.silicon.crossed import outside
from aegis.planner.silicon.fit import rows
from aegis.planner.silicon.fitted import fitted
from aegis.planner.silicon.mechanism import KINDS
from aegis.planner.silicon.predict import Prediction, Workers, placed, predict
from aegis.planner.silicon.score import Outcome
from aegis.planner.silicon.variances import spread_of
from aegis.planner.silicon.whole import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from aegis.planner.operations import Floats
    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.fitted import Errors, Fitted
    from aegis.planner.silicon.kriging import Place
    from aegis.planner.silicon.mechanism import Mechanism

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "accuracy.md"
BLOCKS: Final[dict[str, tuple[str, ...]]] = {
    "a deployment": ("mode", "backend", "system", "model", "formats", "split"),
    "a model": ("model",),
}


def by_mechanism(chosen: Iterable[Deployment], known: Fitted) -> list[Outcome]:
    """Return what the mechanism alone says."""
    workers = Workers(known)
    found = ((row, placed(row, workers)) for row in chosen)
    return [Outcome(row, Prediction(each.ttft, each.tpot)) for row, each in found]


def left_out(
    outcomes: Sequence[Outcome], known: Fitted, block: Callable[[str, Place], Hashable]
) -> list[Outcome]:
    """Return what the mechanism says, and what remains of rows outside each one's block, by its id and place."""
    ids = [each.row.id for each in outcomes]
    first, first_spread = _outside(known.ttft, ids, block)
    further, further_spread = _outside(known.tpot, ids, block)
    found = []
    for each, *errors, one, other in zip(outcomes, first, further, first_spread, further_spread, strict=True):
        ttft, tpot = each.said.ttft * np.exp(errors[0]), each.said.tpot * np.exp(errors[1])
        spread = spread_of_sum(ttft, tpot * (each.row.osl - 1), one, other)
        found.append(Outcome(each.row, Prediction(ttft, tpot, one, other, spread)))
    return found


def _outside(
    errors: Errors, ids: Sequence[str], block: Callable[[str, Place], Hashable]
) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation of each row, read from rows outside its block."""
    known = {each.id: each for each in errors.residuals}
    residuals = [known[each] for each in ids]
    mean, variance = outside(errors.kernels, residuals, lambda each: block(each.id, each.place))
    kernels = [errors.kernels[each.place.mode] for each in residuals]
    spread = np.array([spread_of(kernel, each) for kernel, each in zip(kernels, variance, strict=True)])
    for number, each in enumerate(residuals):
        if untaken := errors.untaken(each.place, partial(getattr, each, "share"), 1):
            mean[number], spread[number] = untaken.mean[0], untaken.spread[0]
    return mean, spread


def anew(chosen: Sequence[Deployment], known: Fitted) -> dict[str, list[Outcome]]:
    """Return what is said of each system by a fit to the others, and by its mechanism alone."""
    corrected, alone = [], []
    for system in sorted({row.system for row in chosen}):
        own = [row for row in chosen if row.system == system]
        others = fit([row for row in chosen if row.system != system], kernels=known)
        said = zip(own, predict(own, known=others), strict=True)
        corrected += [Outcome(row, each) for row, each in said if not isinstance(each, str)]
        alone += by_mechanism(own, others)
    return {ANEW: corrected, ANEW_ALONE: alone}


def without(known: Fitted) -> Iterator[tuple[str, Fitted]]:
    """Yield the mechanism with one part after the other taken to be none."""

    def changed(change: Callable[[Mechanism], Mechanism]) -> Fitted:
        return replace(
            known,
            mechanisms={
                engine: {kind: change(each) for kind, each in kinds.items()}
                for engine, kinds in known.mechanisms.items()
            },
        )

    none = dict.fromkeys(KINDS, 1.0)
    yield (
        "the host's ms of steps and requests",
        changed(lambda each: replace(each, host=replace(each.host, step=0.0, request=0.0))),
    )
    yield (
        "steps until the scheduler looks",
        changed(lambda each: replace(each, host=replace(each.host, waits=0.0))),
    )
    yield "factors of decode", changed(lambda each: replace(each, decode=none))
    yield "factors of prefill", changed(lambda each: replace(each, prefill=none))
    yield (
        "all of it: uncorrected",
        changed(lambda each: replace(each, host=Host(), decode=none, prefill=none)),
    )


def tables(chosen: Sequence[Deployment], known: Fitted, drawn: dict[str, list[Outcome]]) -> dict[str, str]:
    """Return the tables of the page by the names of their places."""
    mechanism = drawn["mechanism alone"]
    asked = [each.row for each in mechanism]
    less = {name: by_mechanism(asked, fewer) for name, fewer in without(known)}
    others = {name: left_out(mechanism, known, _alike(names)) for name, names in BLOCKS.items()}
    found = {
        "counts": counts(),
        "same": same_question(chosen),
        "residuals": grouped(drawn["uncorrected"]),
        "mechanism": mechanisms(known),
        "versions": versions(known),
        "unproven": unproven(known),
        "parts": parts({"nothing: the whole mechanism": mechanism} | less),
        "levels": levels(known),
        "widened": widening(known),
        "crossed": crossed(drawn | others | anew(asked, known)),
    }
    return {name: "\n".join(lines).replace("%", " %") for name, lines in found.items()}


def _alike(names: Sequence[str]) -> Callable[[str, Place], Hashable]:
    """Return what puts places into one block: these of their attributes."""
    return lambda _, place: tuple(getattr(place, each) for each in names)


def main() -> None:
    """Predict, draw, write."""
    known, chosen = fitted(), rows()
    print("predictions", file=sys.stderr)
    said = list(predict(chosen, corrected=False))
    plain = [Outcome(row, each) for row, each in zip(chosen, said, strict=True) if not isinstance(each, str)]
    mechanism = by_mechanism([each.row for each in plain], known)
    alone = left_out(mechanism, known, lambda name, _: name)
    print("pictures", file=sys.stderr)
    for name, content in (
        ("tpot", scatter("tpot", plain, alone)),
        ("ttft", scatter("ttft", plain, alone)),
        (
            "errors",
            bars(
                {"uncorrected": plain, "mechanism": mechanism, "corrected, each row by the others": alone},
                FEW,
            ),
        ),
    ):
        write_atomically(DOCS / "pictures" / f"accuracy-{name}.svg", content)
    print("tables", file=sys.stderr)
    page = PAGE.read_text(encoding="utf-8")
    drawn = {"uncorrected": plain, "mechanism alone": mechanism, SINGLE: alone}
    for name, table in tables(chosen, known, drawn).items():
        head, mark, after = page.partition(f"<!-- {name} -->\n")
        if not mark:
            raise SystemExit(f"{PAGE.name} has no place for {name}")
        page = f"{head}{mark}\n{table}\n\n{after[after.index('<!-- end -->') :]}"
    write_atomically(PAGE, page)


if __name__ == "__main__":
    main()
