"""The frontiers of a plan as one page of HTML that needs nothing else: hover a point to read its configuration."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.planner.report.curves import picture_of

if TYPE_CHECKING:
    from aegis.planner.plan import Plan

TEMPLATE: Final = Path(__file__).parents[2] / "web" / "plan.html"


def page(plan: Plan) -> str:
    """Return the page."""
    shown = picture_of(plan)
    # In a script element only `<` could end it or begin a comment.
    data = msgspec.json.encode(shown).decode().replace("<", r"\u003c")
    text = TEMPLATE.read_text(encoding="utf-8")
    head, tail = text.split("{{data}}")
    return head.replace("{{title}}", html.escape(shown.title)) + data + tail
