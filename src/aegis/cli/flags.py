"""How a group of flags gets onto commands that share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Callable[..., Any]
    Flag = Callable[[Command], Command]


def with_flags(function: Command, flags: Sequence[Flag]) -> Command:
    """Return a command with flags, which its help shows in their order."""
    for flag in reversed(flags):
        function = flag(function)
    return function


def format_flags(text: str) -> tuple[Flag, Flag]:
    """Return `--format text|json` and its short form; `text` is the help of the first."""
    return (
        click.option(
            "--format",
            "form",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help=text,
        ),
        click.option("--json", "--json-mode", "as_json", is_flag=True, help="The same as --format json."),
    )
