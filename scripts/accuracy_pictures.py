"""The pictures of docs/accuracy.md as SVG, legible on light and dark pages. Pure; `draw_accuracy.py` writes them."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

from accuracy_tables import CALLED

from aegis.planner.problem import BACKENDS
from aegis.planner.silicon.score import by_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aegis.planner.silicon.score import Figure, Outcome

WIDTH: Final = 860
# Told apart by people with any colour vision (Okabe and Ito).
STYLE: Final = """<style>
.card{fill:#fff}.ink{fill:#1f2430}.faint{fill:#5b6170}.grid{stroke:#e3e6ec}.line{stroke:#8a8f9c}
.c0{stroke:#0072b2;fill:#0072b2}.c1{stroke:#d55e00;fill:#d55e00}.c2{stroke:#009e73;fill:#009e73}
path{fill:none!important;stroke-width:2.6;stroke-linecap:round;stroke-opacity:.5}rect,circle{stroke:none}text{stroke:none}
@media(prefers-color-scheme:dark){.card{fill:#12161d}.ink{fill:#e6e8ee}.faint{fill:#a2a9b8}.grid{stroke:#2a303b}
.c0{stroke:#56b4e9;fill:#56b4e9}.c1{stroke:#e69f00;fill:#e69f00}.c2{stroke:#2fc79a;fill:#2fc79a}}
</style>"""
SIDE: Final = 340  # of a panel, px


class Panel(NamedTuple):
    """A square with equal logarithmic axes."""

    left: int
    top: int
    low: float  # ms
    high: float

    def along(self, ms: float) -> int:
        """Return px from the low end."""
        return round(SIDE * math.log(ms / self.low) / math.log(self.high / self.low))


def scatter(figure: Figure, before: Sequence[Outcome], after: Sequence[Outcome]) -> bytes:
    """Return measured over predicted, uncorrected and corrected."""
    both = [*before, *after]
    values = [value for each in both for value in (each.measured(figure), each.predicted(figure))]
    low, high = min(values) / 1.1, max(values) * 1.1
    parts = [
        _text(
            24,
            28,
            f"{figure.upper()} of {len(before):,} deployments; dashed: off by a factor of 2",
            "ink",
            "bold",
            size=16,
        )
    ]
    parts += _legend(24, 50, {CALLED[name]: number for number, name in enumerate(BACKENDS)})
    titles = "uncorrected", "corrected, each row by the others"
    for number, (title, outcomes) in enumerate(zip(titles, (before, after), strict=True)):
        panel = Panel(66 + number * 420, 92, low, high)
        error = statistics.median(
            abs(each.predicted(figure) / each.measured(figure) - 1) for each in outcomes
        )
        parts.append(
            _text(panel.left, panel.top - 10, f"{title}: median error {100 * error:.0f} %", "ink", size=13)
        )
        parts += _frame(panel)
        parts += _dots(panel, figure, outcomes)
    return _document(488, parts, f"Measured over predicted {figure.upper()}, before and after the correction")


def _frame(panel: Panel) -> Iterator[str]:
    left, top, bottom = panel.left, panel.top, panel.top + SIDE
    for exponent in range(math.ceil(math.log10(panel.low)), math.floor(math.log10(panel.high)) + 1):
        at = panel.along(10.0**exponent)
        name = _duration(10.0**exponent)
        yield f'<line class="grid" x1="{left + at}" x2="{left + at}" y1="{top}" y2="{bottom}"/>'
        yield f'<line class="grid" x1="{left}" x2="{left + SIDE}" y1="{bottom - at}" y2="{bottom - at}"/>'
        yield _text(left + at, bottom + 16, name, "faint", anchor="middle")
        yield _text(left - 6, bottom - at + 4, name, "faint", anchor="end")
    yield f'<line class="line" x1="{left}" y1="{bottom}" x2="{left + SIDE}" y2="{top}"/>'
    half = panel.along(panel.low * 2)
    for x, y in ((half, 0), (0, half)):
        yield (
            f'<line class="line" stroke-dasharray="3 4" x1="{left + x}" y1="{bottom - y}"'
            f' x2="{left + SIDE - y}" y2="{top + x}"/>'
        )
    yield _text(left + SIDE // 2, bottom + 36, "predicted", "faint", anchor="middle")
    middle = top + SIDE // 2
    yield f'<text class="faint" text-anchor="middle" transform="rotate(-90 {left - 50} {middle})" x="{left - 50}" y="{middle}">measured</text>'


def _dots(panel: Panel, figure: Figure, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a path for each engine: a line of no length is a dot, and takes some bytes."""
    for number, backend in enumerate(BACKENDS):
        spots = sorted(
            {
                (panel.along(each.predicted(figure)), panel.along(each.measured(figure)))
                for each in outcomes
                if each.row.backend == backend
            }
        )
        x, y = panel.left, panel.top + SIDE
        drawn = [f"M{x} {y}"]
        for along, up in spots:
            across, down = panel.left + along - x, panel.top + SIDE - up - y
            drawn.append(f"m{across}{'' if down < 0 else ' '}{down}h0")
            x, y = x + across, y + down
        yield f'<path class="c{number}" d="{"".join(drawn)}"/>'


def bars(stages: Mapping[str, Sequence[Outcome]], few: int) -> bytes:
    """Return median errors by engine and system: a panel for each of TPOT and TTFT, a bar for each stage."""
    parts = [
        _text(24, 28, "Median error by engine and system, and what is left of it", "ink", "bold", size=16)
    ]
    parts += _legend(24, 50, {name: number for number, name in enumerate(stages)})
    figures: tuple[Figure, ...] = ("tpot", "ttft")
    for number, figure in enumerate(figures):
        parts += _bars(78 + number * 236, figure, stages, few)
    return _document(560, parts, "Median error of TPOT and TTFT by engine and system, at three stages")


def _bars(top: int, figure: Figure, stages: Mapping[str, Sequence[Outcome]], few: int) -> Iterator[str]:
    groups = [
        {
            name: found
            for name, found in by_group(
                each, lambda row: (str(BACKENDS.index(row.backend)), row.system)
            ).items()
            if len(found) >= few
        }
        for each in stages.values()
    ]
    left, bottom, tall = 60, top + 176, 150
    yield _text(24, top + 10, figure.upper(), "ink", "bold", size=13)
    for percent in range(0, 101, 25):
        y = bottom - tall * percent // 100
        yield f'<line class="grid" x1="{left}" x2="{WIDTH - 20}" y1="{y}" y2="{y}"/>'
        yield _text(left - 6, y + 4, f"{percent} %", "faint", anchor="end")
    step = (WIDTH - 20 - left) / len(groups[0])
    wide = min(round(step / 4.4), 16)
    for place, name in enumerate(groups[0]):
        middle = left + (place + 0.5) * step
        for stage, found in enumerate(groups):
            error = statistics.median(
                abs(each.predicted(figure) / each.measured(figure) - 1) for each in found[name]
            )
            high = round(tall * min(error, 1.0))
            x = round(middle + (stage - len(groups) / 2) * wide)
            if error > 1:  # two beside each other may be cut off
                side, anchor = (wide - 3, "end") if stage == 0 else (2, "start")
                share = f"{100 * error:.0f}"
                yield _text(x + side, bottom - tall - 4, share, "faint", anchor=anchor, size=9)
            yield f'<rect class="c{stage}" x="{x}" y="{bottom - high}" width="{wide - 1}" height="{high}"/>'
        number, system = name
        yield _text(round(middle), bottom + 15, BACKENDS[int(number)], "ink", anchor="middle", size=11)
        yield _text(
            round(middle), bottom + 29, system.removesuffix("_sxm"), "faint", anchor="middle", size=11
        )


def _legend(left: int, top: int, names: Mapping[str, int]) -> Iterator[str]:
    for name, number in names.items():
        yield f'<circle class="c{number}" cx="{left + 5}" cy="{top - 4}" r="5"/>'
        yield _text(left + 15, top, name, "ink")
        left += 38 + 7 * len(name)


def _text(
    x: int, y: int, text: str, kind: str, weight: str = "", *, anchor: str = "start", size: int = 12
) -> str:
    bold = ' font-weight="bold"' if weight else ""
    return (
        f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}"{bold}>{text}</text>'
    )


def _duration(ms: float) -> str:
    if ms >= 1000:  # noqa: PLR2004 - ms of a second
        return f"{ms / 1000:,.0f} s"
    return f"{ms:g} ms"


def _document(height: int, parts: Sequence[str], title: str) -> bytes:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="system-ui,sans-serif" font-size="12">'
    )
    card = f'<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>'
    return "\n".join((head, f"<title>{title}</title>", STYLE, card, *parts, "</svg>\n")).encode()
