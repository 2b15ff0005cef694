"""Numbers that make no question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import Problem
from aegis.planner.models.architectures import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.task import Question


# More than this is a slip of the pen, and later a number that no machine word holds.
_MOST = {"total_gpus": 10**6, "isl": 10**8, "osl": 10**8, "max_seq_len": 10**9, "top_n": 10**6, "nextn": 16}


def check(question: Question) -> Iterator[Problem]:
    """Yield what is wrong with the numbers of a question."""
    yield from _sizes(question)
    yield from _tokens(question)
    yield from _targets(question)
    yield from _shares(question)


def remarks(question: Question, model: ModelShape) -> Iterator[str]:
    """Yield what a question can ask, and its user has to know."""
    mode = question.database_mode
    if mode != "SILICON" and question.estimator.rules == "guide":
        yield f"the guide's rules take tables alone: {mode} changes nothing"
    elif mode == "SOL":
        yield "figures of the speed of light, which no engine reaches"
    elif mode == "HYBRID":
        yield "where tables end, figures are estimated from the nearest that they have"
    if model.architecture not in FAMILIES:
        kind = "of experts" if model.has_experts else "without experts"
        yield f"architecture {model.architecture} is not known: planned by its sizes, as a decoder {kind}"
    if question.mtp and question.mtp.drafted and not model.mtp_layers:
        yield f"{model.name} has no layer that drafts tokens: one is counted as if it had"


def _sizes(question: Question) -> Iterator[Problem]:
    load, where = question.load, question.where
    least = {"total_gpus": question.total_gpus, "isl": load.isl, "top_n": question.top_n}
    for name, value in least.items():
        if value < 1:
            yield Problem(where(name), f"{value} is too few", f"`{name}` is at least 1")
    drafted = question.mtp.drafted if question.mtp else 0
    largest = least | {"osl": load.osl, "max_seq_len": load.max_seq_len or 0, "nextn": drafted}
    for name, value in largest.items():
        if value > _MOST[name]:
            yield Problem(where(name), f"{value} is too many", f"`{name}` is at most {_MOST[name]}")


def _tokens(question: Question) -> Iterator[Problem]:
    load, where = question.load, question.where
    if load.osl < 2:  # noqa: PLR2004 - the first token is prefilled, and a second one has to be decoded
        yield Problem(
            where("osl"),
            f"{load.osl} output tokens have no time per output token",
            "`osl` is at least 2: the first token comes from the prefill",
        )
    if not 0 <= load.prefix < max(load.isl, 1):
        yield Problem(
            where("prefix"),
            f"{load.prefix} cached tokens of {load.isl}",
            "`prefix` is at least 0 and below `isl`",
        )
    if load.max_seq_len is not None and load.max_seq_len < load.isl + load.osl:
        yield Problem(
            where("max_seq_len"),
            f"{load.max_seq_len} tokens do not hold {load.isl} + {load.osl}",
            "`max_seq_len` is at least isl + osl",
        )


def _targets(question: Question) -> Iterator[Problem]:
    targets = question.targets
    times = {"ttft": targets.ttft, "tpot": targets.tpot, "request_latency": targets.request_latency}
    for name, time in times.items():
        if time is not None and not time > 0:
            yield Problem(question.where(name), f"{time:g} ms is no target", f"`{name}` is above 0")


def _shares(question: Question) -> Iterator[Problem]:
    where = question.where
    if question.mtp and not all(0 <= rate <= 1 for rate in question.mtp.accept_rates):
        yield Problem(
            where("accepted"), "more tokens are accepted than drafted, or fewer than none", "0 to `nextn`"
        )
    fraction = question.tuning.free_memory_fraction
    if fraction is not None and not 0 < fraction <= 1:
        yield Problem(
            where("free_gpu_memory_fraction"), f"{fraction:g} is no share", "it is above 0, at most 1"
        )
