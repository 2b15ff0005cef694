"""What binds a plan, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.report.words import between, configuration, parallel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.why import Why

_SAYS = {
    "memory": "memory: a larger batch does not fit",
    "TPOT target": "the TPOT target: a larger batch misses it",
    "TTFT target": "the TTFT target: a larger batch misses it",
    "request latency target": "the target for the whole request: a larger batch misses it",
    "rate matching": "the balance of prefill and decode workers: a larger batch would wait for prompts",
    "search": "the search, which kept no larger batch of this split",
    "saturation": "nothing that a larger batch would help: throughput no longer grows",
    "replica": "how workers are put together: a larger batch delivers more of a worker, but not of all GPUs",
    "largest batch tried": "the largest batch that is tried",
}


def report(reasons: Sequence[Why]) -> str:
    """Return the text of `aegis plan why`."""
    return "\n\n".join("\n".join(_experiment(each)) for each in reasons)


def _experiment(reason: Why) -> Iterator[str]:
    yield f"{reason.name}: {_configuration(reason.best)}"
    yield f"  bound by {_SAYS[reason.binds]}"
    yield f"    {reason.detail}"
    for step in reason.steps:
        shares = ", ".join(
            f"{share:.0%} {bound}" for bound, share in sorted(step.shares.items(), key=lambda each: -each[1])
        )
        yield f"  {step.name} step, {step.ms:.2f} ms: {shares}; the hardware's limits alone: {step.reached:.0%} of it"
    for looser in reason.looser:
        yield f"  target x{looser.factor:g} ({looser.target:g} ms): {looser.gain:+.0%}, {_configuration(looser.candidate)}"
    if reason.lost:
        yield "  other splits:"
        width = max(len(parallel(lost.split)) for lost in reason.lost)
        for lost in reason.lost:
            yield f"    {parallel(lost.split):<{width}}  {lost.reason}"


def _configuration(candidate: Candidate) -> str:
    sure = f", {between(candidate.tokens_per_s_gpu, candidate.spread)}" if candidate.spread else ""
    return (
        f"{configuration(candidate)} ({candidate.workers[-1].backend}), TTFT {candidate.ttft:.0f} ms, TPOT {candidate.tpot:.2f} ms, "
        f"{candidate.tokens_per_s_gpu:.1f} tokens/s/gpu{sure}"
    )
