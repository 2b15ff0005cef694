"""The simulated engine: the same life as vLLM's, with words that mean nothing (`aegis sim`)."""

from __future__ import annotations

from aegis.engines.base import Cause, Start
from aegis.engines.vllm import Vllm, serve_args


class Sim(Vllm):
    """Servers of `aegis sim`: they take vLLM's flags and show vLLM's metrics."""

    name = "sim"
    program = "python"
    causes = (*Vllm.causes, Cause(r"sim: ([^\n]*)", "{}", permanent=False))

    def command(self, start: Start) -> tuple[str, ...]:
        """Return `python -P -m aegis sim ...`; arguments written for vLLM are passed, so that its file can be rehearsed."""
        entry = start.entry
        return (
            *(start.python, "-P", "-m", "aegis", "sim", start.entry.model),
            *serve_args(start),
            *entry.extra_vllm_args,
            *entry.extra_sim_args,
        )
