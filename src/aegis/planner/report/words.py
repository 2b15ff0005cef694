"""Short words for splits, configurations and figures that are known within an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aegis.planner.answer import interval

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate
    from aegis.planner.problem import Parallel

_NAMES = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")
_DIGITS: Final = 3  # that mean something in a figure with an interval
INTERVAL: Final = "80 %"  # head of the column of intervals
ALIKE: Final = "="  # mark of what cannot be told apart from the first


def printable(text: str) -> str:
    """Return a name that somebody gave with its control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def parallel(split: Parallel) -> str:
    """Return the sizes that are more than one: `tp4 dp2`; `tp1` where none is."""
    sizes = {name: getattr(split, name) for name in _NAMES}
    return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "tp1"


def configuration(candidate: Candidate) -> str:
    """Return what one replica is: `tp8 bs 32`, or `4 x tp2 bs 1 + 1 x tp8 bs 60` (prefill, decode)."""
    return " + ".join(
        f"{f'{each.count} x ' if candidate.mode == 'disagg' else ''}{parallel(each.parallel)} bs {each.batch}"
        for each in candidate.workers
    )


def between(value: float, spread: float) -> str:
    """Return an 80 % interval in a few digits: `790-1010`; nothing where it is not known."""
    return "-".join(map(_short, interval(value, spread))) if spread else ""


def figure(value: float, unit: str, spread: float) -> str:
    """Return a figure with its interval: `914 ms, 790-1010`; with two decimals, `913.82 ms`, where none is known."""
    return f"{_short(value)}{unit}, {between(value, spread)}" if spread else f"{value:.2f}{unit}"


def support(measured: int, spread: float) -> str:
    """Return how many measured deployments stand behind a figure; nothing where its interval is not known."""
    if not spread:
        return ""
    if not measured:
        return f"no measured deployment like it: ±{interval(1, spread)[1] - 1:.0%}".replace("%", " %")
    return f"from {measured} measured deployment{'s' * (measured > 1)} like it"


def _short(value: float) -> str:
    rounded = float(f"{value:.{_DIGITS}g}")
    return f"{rounded:.0f}" if rounded >= 10 ** (_DIGITS - 1) else f"{rounded:#.{_DIGITS}g}"
