"""How many requests an instance runs and keeps waiting, from its page of metrics. Pure."""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

SAMPLE: Final = re.compile(
    rb"^(?:vllm:num_requests_(running|waiting)|sglang:num_(running|queue)_reqs)(?:\{[^}\n]*\})? (\S+)",
    re.MULTILINE,
)


class Load(NamedTuple):
    """Requests of an instance, of all its replicas together."""

    running: float
    waiting: float


def read_load(page: bytes) -> Load | None:
    """Return what a page tells, or None where it tells nothing of that."""
    found = {"running": 0.0, "waiting": 0.0}
    told = False
    for vllm, sglang, value in SAMPLE.findall(page):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            found["running" if b"running" in (vllm, sglang) else "waiting"] += number
            told = True
    return Load(found["running"], found["waiting"]) if told else None
