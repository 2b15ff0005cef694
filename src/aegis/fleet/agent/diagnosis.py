"""What an engine's last words say of its end. Pure."""

from __future__ import annotations

import re
import signal
from typing import Any

EXCEPTION = re.compile(r"(?:\([^)]*\) )?[\w.]*(?:Error|Exception)\b: .")  # what a Python traceback ends with


def diagnose(causes: list[list[Any]], lines: list[str], code: int | None) -> tuple[str, bool]:
    """Return the likely cause of a death, and whether another start would fail the same way."""
    text = "\n".join(lines)
    for pattern, cause, permanent in causes:
        match = re.search(pattern, text)
        if match:
            found = next((group for group in match.groups() if group), "") if match.groups() else ""
            return cause.replace("{}", found.strip()[:200]).rstrip(": "), bool(permanent)
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = ", perhaps by the node's out-of-memory killer" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}", False
    said = [line for line in lines if EXCEPTION.match(line)]
    return (said[-1][:240] if said else ""), False
