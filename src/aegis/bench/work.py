"""Loads as values: who is asked what, and when. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from aegis.api.targets import Target  # noqa: TC001 - msgspec reads it
from aegis.bench.prompts import Prompt  # noqa: TC001 - as above
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Work(Struct, frozen=True, kw_only=True):
    """The requests of one server: so many at once, or each at its time whatever became of those before."""

    target: Target
    model: str
    prompts: tuple[Prompt, ...]
    concurrency: int = 0  # closed loop; 0 where there are arrivals
    arrivals: tuple[float, ...] = ()  # open loop: s after the beginning, one for each prompt, rising
    chat: bool = False
    options: dict[str, Any] = {}  # further keys of the body: temperature, ignore_eos
    seconds: float = 3600.0  # that one request may take
    first: int = 0  # the number of its first prompt in the load that it was split from
    stride: int = 1  # and the distance to the next

    def __post_init__(self) -> None:
        """Refuse what has no or two meanings."""
        if bool(self.arrivals) == bool(self.concurrency) and self.prompts:
            raise ConfigError("a load has either a concurrency or a rate")
        if self.arrivals and len(self.arrivals) != len(self.prompts):
            raise ConfigError("a load has as many arrivals as prompts")

    def body(self, index: int) -> dict[str, Any]:
        """Return the body of a request."""
        prompt = self.prompts[index]
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt.text}]} if self.chat else {"prompt": prompt.text}
        )
        return {
            "model": self.model,
            **asked,
            "max_tokens": prompt.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }


def arrivals(count: int, rate: float, burstiness: float = 1.0, seed: int = 0) -> tuple[float, ...]:
    """Return when requests arrive, in seconds, as `vllm bench serve` has it.

    Args:
        count: of requests.
        rate: per second; infinite: all at once.
        burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts, infinite is
            evenly spaced. The gaps are stretched so that all together take count / rate.
        seed: of the drawing.

    Raises:
        ConfigError: the rate or the burstiness is not positive.
    """
    if not rate > 0 or not burstiness > 0:
        raise ConfigError(f"a rate ({rate:g}) and a burstiness ({burstiness:g}) are above 0")
    if math.isinf(rate) or not count:
        return (0.0,) * count
    if math.isinf(burstiness):
        return tuple(index / rate for index in range(count))
    gaps = np.random.default_rng(seed).gamma(burstiness, size=count)
    times = np.cumsum(gaps)
    return tuple((times * (count / rate / times[-1])).tolist())


def split(works: Sequence[Work], processes: int) -> list[dict[int, Work]]:
    """Return the works of each process by their index: whole ones where there are enough, else every work dealt out evenly.

    Fewer processes come back where there is less to do.
    """
    pieces = -(-processes // max(1, len(works)))
    parts = [(index, part) for index, work in enumerate(works) for part in _parts(work, pieces)]
    return [dict(parts[process::processes]) for process in range(min(processes, len(parts)))]


def _parts(work: Work, pieces: int) -> list[Work]:
    """Return every n-th prompt of a work, with its part of the concurrency or its own arrivals."""
    count = max(1, min(pieces, len(work.prompts), work.concurrency or pieces))
    return [
        replace(
            work,
            prompts=work.prompts[part::count],
            concurrency=len(range(part, work.concurrency, count)),
            arrivals=work.arrivals[part::count],
            first=part,
            stride=count,
        )
        for part in range(count)
    ]
