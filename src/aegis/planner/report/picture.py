"""The frontiers of a plan as a PNG, for papers and slides."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Final

from aegis.planner.report.curves import picture_of

if TYPE_CHECKING:
    from aegis.planner.plan import Plan
    from aegis.planner.report.curves import Curve, Picture

# Told apart by people with any colour vision, and by their lightness in print (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS: Final = "os^Dvp"
INK: Final = "#1f2430"
FAINT: Final = "#8a8f9c"
GRID: Final = "#e6e8ee"
SIZE: Final = (9.6, 6.0)  # inches
DPI: Final = 160


def picture(plan: Plan) -> bytes:
    """Return the picture: tokens/s/GPU over tokens/s/user, a line for each experiment, the choice marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    shown = picture_of(plan)
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _frame(axes, shown)
    for index, curve in enumerate(shown.curves):
        _curve(axes, curve, index % len(COLOURS))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if shown.target is not None:
        _target(axes, shown.target)
    if any(curve.points for curve in shown.curves):
        axes.legend(frameon=False, loc="upper right", labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "no configuration was found", transform=axes.transAxes, ha="center", color=FAINT)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may have letters that no font here has
        figure.savefig(file, format="png", metadata={"Software": "aegis plan"})
    return file.getvalue()


def plain(text: str) -> str:
    """Return a text that matplotlib shows as it is: a dollar would begin a formula."""
    return "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")


def _frame(axes: Any, shown: Picture) -> None:
    """Draw what is around the curves."""
    axes.set_title(plain(shown.title), loc="left", fontsize=15, fontweight="bold", color=INK, pad=26)
    axes.text(0, 1.025, plain(shown.subtitle), transform=axes.transAxes, fontsize=9.5, color=FAINT)
    axes.set_xlabel("tokens/s per user", color=INK)
    axes.set_ylabel("tokens/s per GPU", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _curve(axes: Any, curve: Curve, index: int) -> None:
    """Draw one frontier, and a star with its figures where it is the choice."""
    if not curve.points:
        return
    colour = COLOURS[index]
    x, y = [point.x for point in curve.points], [point.y for point in curve.points]
    axes.plot(
        *(x, y),
        color=colour,
        marker=MARKERS[index],
        markersize=4.5,
        linewidth=1.8,
        label=plain(curve.name),
        markeredgecolor="white",
        markeredgewidth=0.6,
    )
    known = [(point.x, point.low, point.high) for point in curve.points if point.low is not None]
    if known:
        axes.fill_between(*zip(*known, strict=True), color=colour, alpha=0.12, linewidth=0)
    if not curve.best:
        return
    best = curve.best[0]
    star: dict[str, Any] = {"marker": "*", "s": 300 if curve.chosen else 130, "zorder": 5, "linewidth": 1}
    axes.scatter(
        [best.x],
        [best.y],
        color=colour if curve.chosen else "white",
        edgecolor=INK if curve.chosen else colour,
        **star,
    )
    if curve.chosen:
        axes.annotate(
            f"best: {best.y:.0f} tokens/s/GPU\n{best.x:.0f} tokens/s/user",
            (best.x, best.y),
            xytext=(14, 14),
            textcoords="offset points",
            fontsize=9.5,
            color=INK,
            fontweight="bold",
        )


def _target(axes: Any, target: float) -> None:
    """Draw how fast a user's tokens have to come, if that is in the picture."""
    if target > axes.get_xlim()[1]:
        return
    axes.axvline(target, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"target: {target:g}",
        (target, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=8.5,
        color=FAINT,
    )
