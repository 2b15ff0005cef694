"""What an engine tells about itself: its last words, and its metrics. Pure."""

from __future__ import annotations

import math
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


def parse_metrics(text: str, names: dict[str, list[str]]) -> dict[str, float]:
    """Sum the samples of a Prometheus page over their labels, for each group of alternative names."""
    wanted = {name: group for group, alternatives in names.items() for name in alternatives}
    sums: dict[str, float] = {}
    for line in text.split("\n"):  # not splitlines: labels may hold other line separators
        name = line.partition("{")[0].partition(" ")[0]
        group = wanted.get(name)
        if group is None:
            continue
        try:
            value = float(line.rpartition("}")[2].split()[0 if "{" in line else 1])
        except (ValueError, IndexError):
            continue
        if math.isfinite(value):  # JSON has no NaN: one would cost the whole node its report
            sums[group] = sums.get(group, 0.0) + value
    return sums
