"""Prometheus' text format, read tolerantly: a line that is no sample is no sample.

A server's page has 600 lines, of which 100 matter. prometheus_client's parser takes 10 ms for it and 40 ms to load.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

QUOTED = r'"(?:[^"\\]|\\.)*+"'
SAMPLE = re.compile(rf"\s*+([A-Za-z_:][\w:]*+)\s*+(?:\{{((?:[^\"}}]|{QUOTED})*+)\}})?\s*+(\S++)", re.ASCII)
LABEL = re.compile(rf"([A-Za-z_]\w*+)\s*+=\s*+({QUOTED})", re.ASCII)
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
MEANING = {"n": "\n"}  # of an escaped character; others mean themselves


class Sample(NamedTuple):
    """One line of a page."""

    labels: dict[str, str]
    value: float


def samples(text: str, names: Collection[str]) -> dict[str, list[Sample]]:
    """Return the samples of the named series; values that are no numbers are left out."""
    found: dict[str, list[Sample]] = {}
    for line in text.split("\n"):  # not splitlines: labels may hold other line separators
        match = SAMPLE.match(line)
        if match is None or match[1] not in names:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if not math.isnan(value):
            found.setdefault(match[1], []).append(Sample(_labels(match[2] or ""), value))
    return found


def _labels(text: str) -> dict[str, str]:
    return {name: ESCAPE.sub(_unescaped, quoted[1:-1]) for name, quoted in LABEL.findall(text)}


def _unescaped(match: re.Match[str]) -> str:
    return MEANING.get(match[1], match[1])
