"""The arguments of qsub: on the command line, and as directives in the script."""

from __future__ import annotations

import getopt
import os
import re
import shlex
from typing import NamedTuple

SHORT = "A:a:C:c:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:z"
ONCE = "AejkNoqrJ"  # the command line beats the script
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,229}")


class Options(NamedTuple):
    """What qsub was told."""

    values: dict[str, str]
    resources: dict[str, str]
    variables: dict[str, str]


class UsageError(Exception):
    """The arguments are no arguments of qsub."""


class NoVariable(Exception):
    """A variable that is to be passed on is not there."""


def parse(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the options and the rest.

    Raises:
        UsageError: PBS does not know one.
    """
    try:
        found, rest = getopt.getopt(argv, SHORT)
    except getopt.GetoptError as error:
        raise UsageError(f"invalid option -- '{(error.opt or '-')[0]}'") from None
    return [(flag[1:], value) for flag, value in found], rest


def directives(script: str) -> list[str]:
    """Return the arguments that stand in a script, up to its first command."""
    found: list[str] = []
    for number, line in enumerate(script.splitlines()):
        text = line.strip()
        if text.startswith("#PBS"):
            found += shlex.split(text.removeprefix("#PBS"))
        elif text and not text.startswith("#") and not (number == 0 and text.startswith(":")):
            break
    return found


def read(argv: list[str], script: str) -> Options:
    """Return everything that qsub was told.

    Raises:
        UsageError: an argument is none.
        NoVariable: a variable is not there.
    """
    inside, rest = parse(directives(script))
    if rest:
        raise UsageError("directive error")
    outside, _ = parse(argv)
    values: dict[str, str] = {}
    resources: dict[str, str] = {}
    variables: dict[str, str] = {}
    for flag, value in [*inside, *outside]:
        if flag == "l":
            resources |= dict(part.partition("=")[::2] for part in _commas(value))
        elif flag == "v":
            variables |= listed_variables(value)
        elif flag == "W":
            values |= dict(part.partition("=")[::2] for part in _commas(value))
        else:
            values[flag] = value
    if "N" in values and not NAME.fullmatch(values["N"]):
        raise UsageError("illegal -N value")
    return Options(values, resources, variables)


def listed_variables(text: str) -> dict[str, str]:
    """Return the variables of -v: `NAME` has its value from the environment, `NAME=value` may be quoted.

    Raises:
        NoVariable: there is none of a name.
    """
    found = {}
    for part in _commas(text):
        name, given, value = part.partition("=")
        if given:
            found[name] = _unquoted(value)
        elif not name.startswith("PBS_O_"):
            if name not in os.environ:
                raise NoVariable
            found[name] = os.environ[name]
    return found


def _commas(text: str) -> list[str]:
    """Split at commas, but not inside quotes: any quote opens or closes, as the original counts them."""
    parts, quote, start = [], "", 0
    for position, char in enumerate(text):
        if char in "'\"":
            quote = "" if char == quote else char
        elif char == "," and not quote:
            parts.append(text[start:position])
            start = position + 1
    return [part for part in [*parts, text[start:]] if part]


def _unquoted(value: str) -> str:
    """Take the quotes away."""
    kept, quote = [], ""
    for char in value:
        if char in "'\"" and quote in {"", char}:
            quote = "" if quote else char
        else:
            kept.append(char)
    return "".join(kept)
