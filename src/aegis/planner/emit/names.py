"""Names of folders."""

from __future__ import annotations

import math
import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aegis.planner.plan import Plan

LONGEST = 80  # characters of a part that a user named


def folder_name(plan: Plan) -> str:
    """Return the guide's name of a plan's folder, without its random end."""
    experiment = plan.experiments[plan.chosen or 0]
    search, load, targets = experiment.searches[0][0], experiment.load, experiment.targets
    model = _safe(experiment.model_name.rstrip("/").rsplit("/", 1)[-1])
    limits = [
        f"{name}{value:g}"
        for name, value in (("ttft", targets.ttft), ("tpot", targets.tpot))
        if math.isfinite(value)
    ]
    return "_".join(
        [model, _safe(search.system), search.backend, f"isl{load.isl}", f"osl{load.osl}", *limits]
    )


def free_name(directory: Path, name: str) -> Path:
    """Return a folder that is not there yet: the name with a random end."""
    while True:
        folder = directory / f"{name}_{secrets.randbelow(900_000) + 100_000}"
        if not folder.exists():
            return folder


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return names that are safe as folders, no two alike."""
    found: list[str] = []
    for name in names:
        base = safe = _safe(name)
        number = 2
        while safe.lower() in {each.lower() for each in found}:
            safe, number = f"{base}-{number}", number + 1
        found.append(safe)
    return found


def _safe(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:LONGEST] or "plan"
