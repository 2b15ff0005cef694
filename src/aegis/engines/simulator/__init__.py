"""A simulated engine server: vLLM's HTTP interface, timing and metrics, with words that mean nothing.

What to simulate is said here; `engine` is the pure core (step times, queue, prefix cache), `steps` the one of a server
that batches as a plan says, `pace` when tokens are there by either, `text` the words and vectors, `protocol` the bodies, `generate` a request on its way, `metrics` the counters, `faults` what goes wrong
and when, `ranks` the meeting of several nodes, `server` the routes, `process` the life from start-up to SIGTERM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis import __version__

if TYPE_CHECKING:
    from aegis.spec.step_times import StepTimes

FINGERPRINT = f"aegis-sim-{__version__}"
CRASH_EXIT = 17  # exit code of an injected crash


class FaultPlan(Struct, frozen=True, kw_only=True):
    """What goes wrong, and when; None: never. Counts are of requests served well before it."""

    fail_start: str | None = None  # the last words of a start that fails
    crash_after: int | None = None
    crash_after_seconds: float | None = None
    hang_after: int | None = None
    hang_health_after: int | None = None
    hang_health_after_seconds: float | None = None
    error_rate: float = 0.0  # share of requests answered with HTTP 500
    reset_rate: float = 0.0  # share of requests whose connection is dropped half-way


class Settings(Struct, frozen=True, kw_only=True):
    """One simulated server."""

    model: str
    served_model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    max_model_len: int = 32_768  # tokens
    max_num_seqs: int = 256
    kv_cache_tokens: int = 1_048_576
    output_tokens: int = 128  # where an answer ends by itself
    prefix_cache: bool = False
    ttft: float = 0.0  # seconds
    itl: float = 0.0  # seconds, mean
    jitter: float = 0.0  # relative
    step_times: StepTimes | None = None  # of a plan, instead of ttft and itl
    time_scale: float = 1.0  # of all these times: 2 is twice as slow
    seed: int = 0
    startup_seconds: float = 0.0
    grace: float = 2.0  # seconds that open requests get after SIGTERM
    access_log: bool = False
    faults: FaultPlan = FaultPlan()
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29_501
    join_timeout: float = 600.0  # seconds for all ranks to meet

    @property
    def names(self) -> tuple[str, ...]:
        """The names that clients may use; metrics carry the first."""
        return self.served_model_names or (self.model,)
