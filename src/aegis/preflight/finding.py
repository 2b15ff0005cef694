"""What was found before the queue, and the refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import DeploymentError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aegis.spec.resolve import Resolved

UNTOLD = ("default", "detected")  # origins that are no place a user could go to


class Finding(Struct, frozen=True):
    """One reason not to submit a job."""

    problem: Problem
    certain: bool  # else probable: what is known of the site or the model may be wrong


def refuse(findings: Iterable[Finding], force: bool, warn: Callable[[str], None]) -> None:
    """Refuse a job that cannot work; with `force` what is only probable is told and let pass.

    Raises:
        DeploymentError: with every problem at once.
    """
    found = list(dict.fromkeys(findings))
    refused = [each for each in found if each.certain or not force]
    for each in found:
        if each not in refused:
            warn(f"{each.problem.where}: {each.problem.message}; --force lets it pass")
    if refused:
        raise DeploymentError([each.problem for each in refused], hint=_what_force_does(refused))


def _what_force_does(refused: Sequence[Finding]) -> str | None:
    """Return the hint: `--force` helps against what is only probable."""
    probable = dict.fromkeys(each.problem.where for each in refused if not each.certain)
    if not probable:
        return None
    if all(not each.certain for each in refused):
        return "--force submits anyway"
    return f"--force overrides only {', '.join(probable)}"


def place_of(resolved: Resolved, *keys: str) -> str:
    """Return where the first of these fields that was given came from; the flag of the first if none was."""
    for key in keys:
        origin = resolved.origins.get(key, UNTOLD[0])
        if origin not in UNTOLD:
            return origin
    return f"--{keys[0].rpartition('.')[2].replace('_', '-')}"


def quantity(count: int, noun: str) -> str:
    """Return `1 node`, `2 nodes`."""
    return f"{count} {noun}{'s' * (count != 1)}"
