"""What `aegis map` tells of a run of prompts: how far it is, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.cli.live import clock_text, count_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.mapper.progress import Progress


class Told(Struct, kw_only=True):
    """The summary of a run; `--json` prints it."""

    output: str
    rows: int = 0
    done: int = 0  # failed ones among them
    failed: int = 0
    left: int = 0
    errors: dict[str, int] = {}  # rows of this run that failed, by code
    answered: int = 0  # rows of this run, failed ones among them
    prompt_tokens: int = 0  # of this run, as the next two
    completion_tokens: int = 0
    seconds: float = 0.0
    resubmitted: bool = False
    error: str | None = None

    def count(self, progress: Progress) -> None:
        """Take over what this run did."""
        self.errors, self.answered = progress.errors, progress.finished
        self.prompt_tokens, self.completion_tokens = progress.prompt_tokens, progress.completion_tokens
        self.seconds = round(progress.seconds, 3)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def progress_line(now: Progress, problem: str = "") -> str:
    """Return one line for a person.

    Args:
        now: the run.
        problem: what is wrong with those who tell which servers there are.
    """
    parts = [f"{now.done:,} of {now.rows:,} rows ({100 * now.done // max(now.rows, 1)} %)"]
    if now.rate:
        parts.append(f"{now.rate:.1f}/s" if now.rate < 10 else f"{now.rate:,.0f}/s")  # noqa: PLR2004 - digits
    if now.eta is not None and now.left:
        parts.append(f"{clock_text(now.eta)} left")
    if now.prompt_rate or now.completion_rate:
        parts.append(f"tokens/s: {count_text(now.prompt_rate)} in, {count_text(now.completion_rate)} out")
    if now.failed:
        parts.append(f"{now.failed:,} failed")
    parts.append(f"{now.in_flight:,} under way on {now.instances:,} instance{'s' * (now.instances != 1)}")
    if trouble := now.trouble or (problem if not now.instances else ""):
        parts.append(trouble)
    return ", ".join(parts)


def summary_line(told: Told) -> str:
    """Return what became of the rows, for a person."""
    parts = [f"{told.rows:,} rows: {told.done - told.failed:,} answered"]
    if told.failed:
        parts.append(f"{told.failed:,} failed{_by_code(told.errors)}")
    if told.left:
        parts.append(f"{told.left:,} left")
    text = ", ".join(parts)
    if told.answered:
        rate = told.answered / max(told.seconds, 1e-3)
        part = f"{told.answered:,} of them " if told.answered < told.done else ""
        text += f"; {part}in {clock_text(told.seconds)} ({rate:,.1f}/s)"
    if told.prompt_tokens or told.completion_tokens:
        text += f"; tokens: {count_text(told.prompt_tokens)} in, {count_text(told.completion_tokens)} out"
    return text


def _by_code(errors: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {code}' for code, count in errors.items())})" if errors else ""
