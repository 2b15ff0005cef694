"""JSON as release 23.06.06 writes it, which is not always JSON."""

from __future__ import annotations

import re
import sys
from typing import Any

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|nan|inf")  # what goes unquoted
ESCAPED = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f"}


def print_json(value: dict[str, Any]) -> None:
    """Print an answer, as bytes: they may be no text."""
    sys.stdout.flush()
    sys.stdout.buffer.write((_object(value, 0) + "\n").encode("latin-1"))


def _object(value: dict[str, Any], depth: int) -> str:
    inner, outer = " " * 4 * (depth + 1), " " * 4 * depth
    members = [f"{inner}{_quoted(name)}:{_member(name, each, depth + 1)}" for name, each in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{outer}}}" if members else f"{{\n{outer}}}"


def _member(name: str, value: Any, depth: int) -> str:
    if isinstance(value, dict):
        return _object(_merged(value) if name == "Variable_List" else value, depth)
    if isinstance(value, list):
        inner = " " * 4 * (depth + 1)
        lines = ",\n".join(f"{inner}{_quoted(each)}" for each in value)
        return f"[\n{lines}\n{' ' * 4 * depth}]"
    if isinstance(value, str):
        return value if NUMBER.fullmatch(value) else _quoted(value)
    return str(int(value))


def _merged(variables: dict[str, str]) -> dict[str, str]:
    """Merge a variable without a value and the next one; double backslashes."""
    found: dict[str, str] = {}
    empty = ""
    for name, value in variables.items():
        if empty:
            found[empty], empty = f",{name}={value}", ""
        elif value:
            found[name] = value.replace("\\", "\\\\")
        else:
            empty = name
    return {**found, **({empty: ""} if empty else {})}


def _quoted(text: str) -> str:
    """Quote a text; a byte above 127 becomes two that mean nothing."""
    shown = "".join(
        ESCAPED.get(chr(byte), chr(byte)) if byte < 128 else "^" + chr((byte + 64) % 256)
        for byte in text.encode("utf-8", "replace")
    )
    return f'"{shown}"'
