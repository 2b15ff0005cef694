"""Pages of HTML that need nothing else: a template of `web/` with the style that all of them share, and their data."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from typing import Any

WEB: Final = Path(__file__).parent / "web"


def filled(template: str, title: str, data: Any) -> str:
    """Return a page.

    Args:
        template: a file of `web/`.
        title: of the page.
        data: what its script draws, as JSON.
    """
    style, text = ((WEB / name).read_text(encoding="utf-8") for name in ("style.css", template))
    head, tail = text.split("{{data}}")
    # In a script element only `<` could end it or begin a comment.
    script = msgspec.json.encode(data).decode().replace("<", r"\u003c")
    return head.replace("{{style}}", style).replace("{{title}}", html.escape(title)) + script + tail
