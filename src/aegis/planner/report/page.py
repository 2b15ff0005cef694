"""The frontiers of a plan as one page of HTML that needs nothing else: hover a point to read its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.page import filled
from aegis.planner.report.curves import picture_of

if TYPE_CHECKING:
    from aegis.planner.plan import Plan


def page(plan: Plan) -> str:
    """Return the page."""
    shown = picture_of(plan)
    return filled("plan.html", shown.title, shown)
