"""Which configuration Aegis can serve: the chosen one, or where that is disaggregated, an aggregated one in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate, ModeAnswer
    from aegis.planner.plan import Plan
    from aegis.planner.task import Experiment

CHUNK = 2048  # context tokens of a step where nothing was planned


class Choice(NamedTuple):
    """A configuration and the experiment that it answers."""

    experiment: Experiment
    candidate: Candidate
    notes: tuple[str, ...] = ()
    planned: bool = True  # False: it has no figures

    @property
    def replicas(self) -> int:
        """Whole replicas that the GPUs hold."""
        return max(1, self.candidate.replicas(self.experiment.total_gpus))

    def head(self) -> tuple[str, ...]:
        """Return what a file says of it in its first lines."""
        load, targets, candidate = self.experiment.load, self.experiment.targets, self.candidate
        wanted = [f"TTFT <= {targets.ttft:g} ms", f"TPOT <= {targets.tpot:g} ms"]
        if targets.request_latency is not None:
            wanted[1] = f"request <= {targets.request_latency:g} ms"
        asked = f"{self.experiment.model_name}, {load.isl} input and {load.osl} output tokens, {', '.join(wanted)}"
        lines = [f"Written by `aegis plan`: {asked}, {self.experiment.total_gpus} GPUs."]
        if self.planned:
            lines.append(
                f"Planned: {candidate.cluster_throughput(self.experiment.total_gpus):.2f} tokens/s/GPU, "
                f"TTFT {candidate.ttft:.2f} ms, TPOT {candidate.tpot:.2f} ms with "
                f"{candidate.concurrency * self.replicas} requests at a time."
            )
        return tuple(lines)


def served_by_aegis(plan: Plan, index: int, candidate: Candidate) -> Choice:
    """Return what Aegis can serve in place of a configuration of an experiment: itself if it is aggregated."""
    experiment = plan.experiments[index]
    if candidate.mode == "agg":
        return Choice(experiment, candidate, _notes(plan.answers[index]))
    why = (
        f"the plan's choice is disaggregated "
        f"({candidate.cluster_throughput(experiment.total_gpus):.2f} tokens/s/GPU), and Aegis has no router that hands "
        "requests from prefill to decode servers"
    )
    best = [
        Choice(other, answer.best[0], _notes(answer))
        for other, answer in zip(plan.experiments, plan.answers, strict=True)
        if answer.best and answer.mode == "agg" and _same_question(other, experiment)
    ]
    if best:
        choice = max(best, key=lambda each: each.candidate.cluster_throughput(each.experiment.total_gpus))
        there = choice.candidate.cluster_throughput(choice.experiment.total_gpus)
        note = f"{why}: this is the best aggregated configuration of the same plan ({there:.2f} tokens/s/GPU)"
        return choice._replace(notes=(note, *choice.notes))
    note = f"{why}: this has its decode workers' split and batch, prefills too, and HAS NOT BEEN PLANNED"
    return Choice(experiment, _aggregated(candidate), (note,), planned=False)


def _notes(answer: ModeAnswer) -> tuple[str, ...]:
    """Return what limits the figures of an answer."""
    missed = (
        () if answer.meets_targets or not answer.why_none else (f"IT MISSES ITS TARGETS: {answer.why_none}",)
    )
    return (*missed, *answer.notes)


def _same_question(one: Experiment, other: Experiment) -> bool:
    return (one.model, one.total_gpus, one.load) == (other.model, other.total_gpus, other.load)


def _aggregated(candidate: Candidate) -> Candidate:
    """Return the decode workers as aggregated ones."""
    decode = replace(candidate.workers[-1], role="agg", count=1)
    held = decode.batch * decode.parallel.dp * decode.parallel.pp
    return replace(candidate, mode="agg", workers=(decode,), context_tokens=CHUNK, concurrency=held)
