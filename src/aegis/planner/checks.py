"""Numbers that make no question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.task import Question


def check(question: Question) -> Iterator[Problem]:
    """Yield what is wrong with the numbers of a question."""
    load, targets, where = question.load, question.targets, question.where
    least = {"total_gpus": question.total_gpus, "isl": load.isl}
    for name, value in least.items():
        if value < 1:
            yield Problem(where(name), f"{value} is too few", f"`{name}` is at least 1")
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
    times = {"ttft": targets.ttft, "tpot": targets.tpot, "request_latency": targets.request_latency}
    for name, time in times.items():
        if time is not None and not time > 0:
            yield Problem(where(name), f"{time:g} ms is no target", f"`{name}` is above 0")
    fraction = question.tuning.free_memory_fraction
    if fraction is not None and not 0 < fraction <= 1:
        yield Problem(
            where("free_gpu_memory_fraction"), f"{fraction:g} is no share", "it is above 0, at most 1"
        )
    if question.top_n < 1:
        yield Problem(where("top_n"), f"{question.top_n} is too few", "`top_n` is at least 1")
    if load.max_seq_len is not None and load.max_seq_len < load.isl + load.osl:
        yield Problem(
            where("max_seq_len"),
            f"{load.max_seq_len} tokens do not hold {load.isl} + {load.osl}",
            "`max_seq_len` is at least isl + osl",
        )
