"""What becomes of a submission: a job, or a refusal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cycle import fits
from .jobs import DEPENDING, HELD, QUEUED, Job
from .placing import JOB_RESOURCES, UnknownResource, chunks, walltime
from .state import Refused
from .wire import (
    BAD_USER,
    BAD_VALUE,
    NO_ACCESS,
    NOT_ENABLED,
    OVER_LIMIT,
    UNKNOWN_QUEUE,
    UNKNOWN_RESOURCE,
    clock,
)

if TYPE_CHECKING:
    from .state import State
    from .wire import Queue


def admit(state: State, question: dict[str, Any]) -> Job:
    """Return the job that qsub asks for.

    Raises:
        Refused: by the queue, or for what it asks for.
    """
    user = question["user"] or state.site.user
    if user == "root":
        raise Refused(BAD_USER)
    asked = question["values"].get("q", state.site.default_queue)
    queue = state.site.queues.get(asked)
    if queue is None:
        raise Refused(UNKNOWN_QUEUE)
    resources = _checked(question["resources"], queue)
    if not queue.enabled:
        raise Refused(NOT_ENABLED)
    if queue.from_route_only:
        raise Refused(NO_ACCESS)
    job = _job(state, question, user, asked, resources)
    if not queue.route_to and not fits(job, queue):
        raise Refused(OVER_LIMIT)
    return job


def indices(text: str) -> range:
    """Return the numbers of `0-6:2`."""
    first, _, last = text.partition(":")[0].partition("-")
    return range(int(first), int(last) + 1, int(text.partition(":")[2] or 1))


def _moment(text: str) -> float:
    """Return the time of `-a [[CC]YY]MMDDhhmm[.SS]` in its longest form."""
    return time.mktime(time.strptime(text, "%Y%m%d%H%M.%S")) if text else 0.0


def _job(state: State, question: dict[str, Any], user: str, queue: str, resources: dict[str, str]) -> Job:
    given, cwd = question["values"], question["cwd"]
    name = given.get("N") or question["name"]
    depend, now = given.get("depend", ""), time.time()
    if depend:
        kind, _, other = depend.partition(":")
        depend = f"{kind}:{other.partition('.')[0]}.{state.site.server}@{state.site.server}"
    held = "h" in given
    stem = f"{cwd}/{name}"
    return Job(
        number=state.next,
        owner=user,
        name=name,
        queue=queue,
        asked_queue=queue,
        resources=resources,
        script=question["script"],
        cwd=cwd,
        arguments=question["arguments"],
        variables=question["variables"],
        account=given.get("A", ""),
        join=given.get("j", "n"),
        keep=given.get("k", "n"),
        output=_place(given.get("o"), f"{stem}.o{state.next}", cwd),
        error=_place(given.get("e"), f"{stem}.e{state.next}", cwd),
        rerunnable=given.get("r") != "n",
        depend=depend,
        not_before=_moment(given.get("a", "")),
        indices=given.get("J", ""),
        hold="s" if depend else "u" if held else "n",
        state="H" if depend or held else "Q",
        substate=DEPENDING if depend else HELD if held else QUEUED,
        created=now,
        queued=now,
        changed=now,
    )


def _checked(given: dict[str, str], queue: Queue) -> dict[str, str]:
    """Return the resources of a job as the server keeps them.

    Raises:
        Refused: the site does not have one, or cannot read it.
    """
    for name in given:
        if name not in JOB_RESOURCES:
            raise Refused(UNKNOWN_RESOURCE, f"Unknown resource Resource_List.{name}")
    try:
        chunks(given.get("select", "1"))
    except UnknownResource as error:
        raise Refused(UNKNOWN_RESOURCE, f"Unknown resource: {error}") from None
    resources = dict(given)
    if "walltime" in given:
        seconds = walltime(given["walltime"])
        if seconds is None:
            raise Refused(BAD_VALUE, "Illegal attribute or resource value Resource_List.walltime")
        resources["walltime"] = clock(seconds)
    elif queue.max_walltime is not None:
        resources["walltime"] = clock(queue.max_walltime)
    return resources


def _place(given: str | None, default: str, cwd: str) -> str:
    """Return where output goes: a folder stays one."""
    if given is None:
        return default
    path = given if given.startswith("/") else f"{cwd}/{given}"
    return f"{path}/" if not path.endswith("/") and Path(path).is_dir() else path
