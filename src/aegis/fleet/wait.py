"""Wait for a job, and pass on what it says meanwhile; a scheduler that is away for a while ends no wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from aegis.errors import AegisError, DeadlineError, PartialSuccess
from aegis.fleet.jobs import LOCAL, run_of
from aegis.fleet.status import views
from aegis.fleet.watch import Gaps
from aegis.runs import ENDED, job_of
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.runs import Manifest

Goal = Literal["ready", "ended"]
VERDICT_SECONDS = 30.0  # a job says that it is shut down; so long its scheduler may need to say why


class Outcome(Struct, frozen=True):
    """What waiting led to."""

    views: tuple[JobView, ...]  # one per component
    endpoints: tuple[str, ...] = ()
    problem: AegisError | None = None  # some of it was given up


class Follower:
    """One component of a job, followed through its files and its scheduler's words."""

    def __init__(self, jobs: Jobs, manifest: Manifest, say: Callable[[str], None]) -> None:
        self.jobs = jobs
        self.manifest = manifest
        self.say = say
        self._position = 0
        self._told = ""
        self._ended_at: float | None = None

    def look(self) -> bool:
        """Read what the job wrote since; True when its manifest shows another state."""
        before = self.manifest
        self.manifest = self.jobs.reload(before)
        self._pass_on()
        now = self.manifest
        return (now.state, now.settled, now.restarts) != (before.state, before.settled, before.restarts)

    def tell(self, view: JobView) -> bool:
        """Say how the job stands, once; True when that is news."""
        text = f"{view.job_id} {view.model_status}"
        if view.node_list and view.model_status == "LAUNCHING":
            text += f" on {view.node_list}"
        if view.reason:
            text += f": {view.reason.splitlines()[0]}"
        # of a scheduler that is silent the age grows, which is no news
        news = text.partition(";")[0] if view.model_status == "UNKNOWN" else text
        if news == self._told:
            return False
        self._told = news
        if not view.job_id.startswith(f"{LOCAL}://"):
            self.say(text)
        return True

    def is_over(self, view: JobView) -> bool:
        """Tell whether a job that ended shows its last word, or nobody will say more."""
        if view.model_status not in ENDED:
            self._ended_at = None
            return False
        self._ended_at = self._ended_at or time.monotonic()
        waited = time.monotonic() - self._ended_at
        return view.final or view.model_status == "FAILED" or waited > VERDICT_SECONDS

    def _pass_on(self) -> None:
        if not self.manifest.run_dir:
            return
        try:
            text = self.jobs.transport.read(str(run_of(self.manifest).err), self._position)
        except (OSError, SchedulerUnavailable):
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith("error: "):  # its last words; who waits says them again, with the job's name
                break
            self.say(line)


def wait_for(
    jobs: Jobs, handle: str, goal: Goal, say: Callable[[str], None], timeout: float | None = None
) -> Outcome:
    """Wait until every instance of a job is healthy or given up, or until the job has ended.

    Args:
        jobs: the way to the job.
        handle: the job, or one component of it.
        goal: what to wait for.
        say: gets a line for each change, and each line of the job's own progress.
        timeout: seconds to wait at most.

    Raises:
        NotFoundError: there is no such job.
        AegisError: it ended before its servers were ready; the message says why.
        DeadlineError: the timeout passed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    followers = [Follower(jobs, manifest, say) for manifest in jobs.find_all(handle)]
    first = followers[0].manifest.job
    handle = first if len(followers) == 1 else job_of(first)
    local = first.startswith(f"{LOCAL}://")
    tick = jobs.policy.tick if jobs.is_here else jobs.policy.far_tick
    gaps, gap, due = Gaps(jobs.policy), jobs.policy.first, 0.0
    while True:
        looks = [follower.look() for follower in followers]
        changed = any(looks)
        if changed or local or time.monotonic() >= due:
            found = views(
                jobs,
                [follower.manifest for follower in followers],
                0.0 if changed else gap,
                ask_servers=any(follower.manifest.settled for follower in followers),
            )
            news = [each.tell(view) for each, view in zip(followers, found, strict=True)]
            gap = gaps.next(changed=changed or any(news))
            due = time.monotonic() + gap
            outcome = _outcome(jobs, handle, goal, followers, found)
            if outcome:
                return outcome
        if deadline is not None and time.monotonic() >= deadline:
            what = "is not ready" if goal == "ready" else "has not ended"
            raise DeadlineError(f"job {handle} {what} after {timeout:g} s, and goes on", hint=_where(found))
        left = tick if deadline is None else max(0.0, deadline - time.monotonic())
        time.sleep(min(tick, left))


def _outcome(
    jobs: Jobs, handle: str, goal: Goal, followers: list[Follower], found: list[JobView]
) -> Outcome | None:
    """Return what there is to tell at the end; None while there is something to wait for.

    Raises:
        AegisError: the job ended before its servers were ready.
    """
    over = [follower.is_over(view) for follower, view in zip(followers, found, strict=True)]
    if goal == "ended":
        return _end(found) if all(over) else None
    ready = [
        follower.manifest.settled and view.model_status == "READY"
        for follower, view in zip(followers, found, strict=True)
    ]
    if all(over):
        first = next((view for view in found if view.model_status == "FAILED"), found[0])
        why = (first.reason or first.model_status).splitlines()[0]
        served = any(follower.manifest.ready for follower in followers)
        what = "has ended" if served else "ended before its servers were ready"
        raise AegisError(f"job {handle} {what}: {why}", hint=_where([first]))
    if not all(one or other for one, other in zip(ready, over, strict=True)):
        return None
    from aegis.fleet.registries import endpoints_of  # noqa: PLC0415 - start-up time

    endpoints: list[str] = []
    for follower, is_ready in zip(followers, ready, strict=True):
        endpoints += endpoints_of(jobs.transport, follower.manifest) if is_ready else []
    return Outcome(tuple(found), tuple(endpoints), _shortfall(followers, endpoints, found))


def _shortfall(followers: list[Follower], endpoints: list[str], found: list[JobView]) -> AegisError | None:
    wanted = sum(follower.manifest.instances or 1 for follower in followers)
    if len(endpoints) >= wanted:
        return None
    lost = [
        f"{view.job_id}: {view.reason.splitlines()[0]}"
        for view in found
        if view.model_status in ENDED and view.reason
    ]
    text = "; ".join([f"{len(endpoints)} of {wanted} instances are healthy", *lost])
    return PartialSuccess(text, hint="see `aegis status`")


def _end(found: list[JobView]) -> Outcome:
    failed = [view for view in found if view.model_status == "FAILED"]
    if not failed:
        return Outcome(tuple(found))
    why = (failed[0].reason or "no reason is known").splitlines()[0]
    problem = AegisError(f"job {failed[0].job_id} failed: {why}", hint=_where(failed))
    return Outcome(tuple(found), (), problem)


def _where(found: list[JobView]) -> str:
    view = found[0]
    began = view.log and view.model_status != "PENDING"
    return f"its log is {view.log}" if began else f"`aegis status {view.job_id}` says more"
