"""Text of the files that are written: YAML, comments and quoted shell words."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WIDTH = 100


def to_yaml(value: Mapping[str, Any], *, head: Iterable[str] = ()) -> str:
    """Return a mapping as YAML in its own order, after comments; short lists of numbers stay on one line."""
    import yaml  # noqa: PLC0415 - start-up time: only where files are written

    class Dumper(yaml.SafeDumper):
        """Has no anchors: a reader would have to look up what they stand for."""

        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    def sequence(dumper: Any, values: Sequence[Any]) -> Any:
        numbers = all(isinstance(each, int | float) for each in values)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=numbers)

    Dumper.add_representer(list, sequence)
    Dumper.add_representer(tuple, sequence)
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return comments(head) + text


def comments(lines: Iterable[str]) -> str:
    """Return comment lines, wrapped; what cannot be printed is shown escaped, so that no text ends its comment."""
    return "".join(
        f"# {part}\n"
        for line in lines
        for part in textwrap.wrap(
            printable(line),
            WIDTH,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        or [""]
    )


def printable(text: str) -> str:
    """Return a text that stays on one line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
