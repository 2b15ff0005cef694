"""What the host of an engine adds to its GPUs' time."""

from __future__ import annotations

from msgspec import Struct


class Host(Struct, frozen=True, kw_only=True):
    """Times of the host, ms.

    The default of `first` was fitted to 313 measured deployments of the three engines, before steps were fitted as well.
    """

    first: float = 30.0  # of a request before its prompt is scheduled: network, tokenizer, queue
    waits: float = 0.0  # steps that a request waits until the scheduler looks for new ones
    step: float = 0.0  # of every step: scheduling, sampling, launching
    request: float = 0.0  # of every step, for each running request
    spread: float = 0.0  # standard deviation of the logarithm of what a step and a request take
