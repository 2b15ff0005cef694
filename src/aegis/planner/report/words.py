"""Short words for splits and configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate
    from aegis.planner.problem import Parallel

_NAMES = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")


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
