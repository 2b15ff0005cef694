"""Guess what a mistyped name was meant to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


ENDING = 4  # letters; a shorter end is shared by chance


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return "did you mean `x`?" for the known name that ends as `name` does, or is nearest to it, if one is near."""
    import difflib  # noqa: PLC0415 - needed only when something is wrong

    names = list(known)
    longer = [each for each in names if len(name) >= ENDING and each.lower().endswith(name.lower())]
    close = [min(longer, key=len)] if longer else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
