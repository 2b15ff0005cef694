"""Variables as they are given for a launch: in lists, and in files."""

from __future__ import annotations

from pathlib import Path

from aegis.errors import ConfigError
from aegis.spec.catalog.arguments import File, parse_variables, split_variables


def read_variables(text: str) -> dict[str, str]:
    """Return the variables of `A=1,B=2,more.env`, those of its files included.

    Raises:
        ConfigError: something is neither, or a file cannot be read; lines are named by number, for they may hold secrets.
    """
    found: dict[str, str] = {}
    try:
        for part in split_variables(text) or [File("")]:
            found.update(_of_file(part.name) if isinstance(part, File) else [part])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found


def _of_file(name: str) -> dict[str, str]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError):
        raise ConfigError(
            f'`{name}` is not NAME=VALUE, and no file that can be read; quotes keep a comma in a value: NAME="a,b"'
        ) from None
    try:
        return parse_variables(text)
    except ValueError as error:
        raise ConfigError(f"{name}:{error}") from None
