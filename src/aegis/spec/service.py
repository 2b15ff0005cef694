"""Services that outlive a job: the words of `service`, `keep_alive`, `until` and `overlap`, checked; pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any, Final

from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
ID: Final = re.compile(r"\d+([.+_\[].*)?")  # of a job, to a scheduler
ONE_MACHINE: Final = ("registry_port", "port_start", "gateway_port")  # two jobs cannot share one there


def parse_until(text: str, now: float) -> float:
    """Return the moment at which a service ends, in epoch seconds.

    Args:
        text: a date, a date and time (of this machine's zone where it names none), or a duration.
        now: when a duration begins, in epoch seconds.

    Raises:
        ValueError: it is neither.
    """
    try:
        return now + parse_walltime(text)
    except ValueError:
        pass
    try:
        return dt.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"`{text}` is neither a date and time nor a duration") from None


def format_moment(moment: float) -> str:
    """Return a moment as `parse_until` reads it on any machine: UTC, to the second."""
    return dt.datetime.fromtimestamp(round(moment), dt.UTC).isoformat().replace("+00:00", "Z")


def problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Yield what is wrong with a deployment's values, as far as they are about services: key, problem, what to do."""
    name = values.get("service")
    if name is not None and (not NAME.fullmatch(name) or ID.fullmatch(name)):
        yield (
            "service",
            f"`{name}` is no name of a service",
            "letters, digits and .-_, and not the id of a job",
        )
    if not values.get("keep_alive"):
        for key in ("until", "overlap"):
            if key in values:
                yield key, f"`{key}` is given, but the job does not keep a service alive", "add --keep-alive"
        return
    if "walltime" not in values:
        yield "keep_alive", "a service needs the walltime of its jobs", "set `walltime`, such as 12:00:00"
    if "map" in values:
        yield "keep_alive", "a job with `map` ends with its work", "drop one of them"
    yield from _times(values)
    if values.get("scheduler") == "local":
        for key in ONE_MACHINE:
            if key in values:
                yield key, f"two jobs on one machine cannot both have this `{key}`", "leave it out"


def _times(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    if "until" in values:
        try:
            parse_until(values["until"], 0.0)
        except ValueError as error:
            yield "until", str(error), "write 2026-12-31T18:00, or D-HH:MM:SS"
    try:
        if parse_walltime(values.get("overlap", "")) >= parse_walltime(values.get("walltime", "")):
            yield "overlap", "`overlap` is not shorter than the walltime", None
    except ValueError:
        return  # missing, or told of already
