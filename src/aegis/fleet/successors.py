"""The next job of a service: made from this one, and put into the queue that this one came through."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from aegis.errors import AegisError, ConfigError, SiteError
from aegis.fleet.jobs import LOCAL, SUBMITTERS, Jobs
from aegis.fleet.renewal import LOOK_SECONDS, Fate, Renewal, Terms
from aegis.fleet.request import Place, job_request
from aegis.runs import ENDED
from aegis.schedulers.base import (
    FAILED_STARTS_VARIABLE,
    GROUP_VARIABLE,
    JOB_VARIABLE,
    PREDECESSOR_VARIABLE,
    RUN_DIR_VARIABLE,
    SECRET_NAMES,
    SECRETS_VARIABLE,
    After,
)
from aegis.spec.deployment import Deployment
from aegis.spec.platforms import Site, load_platform
from aegis.spec.resolve import Resolved
from aegis.spec.service import parse_until
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.fleet.inside import Walltime
    from aegis.runs import Manifest, RunDir

# What a job knows of itself is not for the next one.
OWN_VARIABLES: Final = (
    JOB_VARIABLE,
    RUN_DIR_VARIABLE,
    SECRETS_VARIABLE,
    GROUP_VARIABLE,
    PREDECESSOR_VARIABLE,
    FAILED_STARTS_VARIABLE,
)


class Scheduled:
    """The scheduler that a job came through, asked from inside the job, or from where it was submitted.

    Args:
        resolved: what the job serves.
        manifest: of the job.
        secrets: that the next job needs too.
        jobs: those that the next one will be one of.
    """

    def __init__(
        self, resolved: Resolved, manifest: Manifest, secrets: Mapping[str, str], jobs: Jobs
    ) -> None:
        self._resolved, self._manifest, self._secrets, self._jobs = resolved, manifest, secrets, jobs
        self.scheme = manifest.job.partition("://")[0]

    @property
    def is_here(self) -> bool:
        """Whether jobs can be submitted from this machine."""
        return self._jobs.present(self.scheme)

    @property
    def absence(self) -> str:
        """What to do where they cannot."""
        command = SUBMITTERS.get(self.scheme, "such scheduler")
        return (
            f"no successor: there is no {command} on {os.uname().nodename}; submit it on a login node: "
            f"aegis submit --successor-of {self._manifest.job}"
        )

    def waiting(self) -> str | None:
        """Return the successor that this job has, whoever submitted it."""
        job = self._manifest.job
        found = [each.job for each in self._jobs.all() if each.predecessor == job and each.state not in ENDED]
        return found[-1] if found else None

    def submit(self, after: After) -> str:
        """Submit a successor: the same deployment, beside this job's run directory."""
        if not self.is_here:
            raise SiteError(self.absence)
        request = job_request([self._resolved], Place.here(), self._manifest.name, after)
        (component,) = request.components
        beside = msgspec.structs.replace(component, folder=self._manifest.run_dir.rpartition("/")[0])
        request = msgspec.structs.replace(request, components=(beside,))
        scheduler = self._jobs.scheduler(self._manifest.job)
        return scheduler.submit(request, scheduler.render(request), self._secrets).handle

    def fate(self, handle: str) -> Fate | None:
        """Return what became of a successor."""
        try:
            (view,) = self._jobs.views([manifest := self._jobs.find(handle)], LOOK_SECONDS / 2)
        except (AegisError, OSError):
            return None
        manifest = self._jobs.reload(manifest)
        return Fate(view.model_status, view.reason, manifest.ready is not None, manifest.successor)

    def cancel(self, handle: str) -> None:
        """Cancel a successor."""
        self._jobs.scheduler(handle).cancel(handle)


# ------------------------------------------------------------------------------------------------ for the head of a job


class Own(NamedTuple):
    """What the head of a job has at hand when it thinks of the next one."""

    resolved: Resolved
    run: RunDir
    manifest: Manifest
    walltime: Walltime
    secrets: Mapping[str, str]  # that the next one needs too
    environ: Mapping[str, str]
    patience: Mapping[str, float]  # seconds that are to be others than usual

    @property
    def clean(self) -> dict[str, str]:
        """The environment, without what is true of this job alone."""
        return {name: value for name, value in self.environ.items() if name not in OWN_VARIABLES}


def refuse_by_hand(deployment: Deployment, environ: Mapping[str, str]) -> None:
    """Refuse to keep alive what was not submitted, and so cannot be submitted again.

    Raises:
        ConfigError: it was not.
    """
    if deployment.keep_alive and not environ.get(RUN_DIR_VARIABLE):
        raise ConfigError(
            "`keep_alive` is for jobs that can be submitted again, not for a launch by hand",
            hint="aegis submit --keep-alive",
        )


def renewal_of(own: Own) -> Renewal | None:
    """Return what keeps the service of a job alive; None where nobody asked for that."""
    if not own.resolved.deployment.keep_alive:
        return None
    line = Scheduled(own.resolved, own.manifest, own.secrets, Jobs(own.clean))
    return Renewal(
        own.manifest.job,
        line,
        own_timer=line.scheme == LOCAL,
        failed_starts=int(own.environ.get(FAILED_STARTS_VARIABLE) or 0),
        successor=own.manifest.successor,
        look=own.patience.get("successor_look", LOOK_SECONDS),
    )


def terms_of(own: Own) -> Terms:
    """Return the times of a job whose first server is healthy."""
    now, limit = time.time(), own.walltime.limit or 0
    return _terms(
        own.resolved.deployment, now + own.walltime.left() - limit, limit, own.manifest.ready or now
    )


def _terms(deployment: Deployment, began: float, walltime: int, ready: float) -> Terms:
    return Terms(
        began=began,
        walltime=walltime,
        startup=max(0.0, ready - began),
        until=parse_until(deployment.until, began) if deployment.until else None,
        overlap=parse_walltime(deployment.overlap) if deployment.overlap else None,
    )


def end_of(deployment: Deployment) -> float:
    """Return when the service of a job ends, in epoch seconds; never, where nobody said when."""
    if not (deployment.keep_alive and deployment.until):
        return math.inf
    return parse_until(deployment.until, time.time())


# ------------------------------------------------------------------------------------------------ by hand


def submit_successor(jobs: Jobs, text: str) -> str:
    """Submit the successor of a job whose nodes cannot do it themselves; return its handle.

    Args:
        jobs: those of this user, on this machine.
        text: the job, or its service.

    Raises:
        AegisError: the job is not to be kept alive, has not begun or has ended, has a successor, or its time is over.
    """
    manifest = jobs.find(text)
    if manifest.job.startswith(f"{LOCAL}://"):
        raise ConfigError(f"{manifest.job} starts its successor itself when the time has come")
    (view,) = jobs.views([manifest])
    if view.model_status in ENDED or manifest.ready is None:
        raise ConfigError(f"{manifest.job} is {view.model_status}: only a job that serves has a successor")
    deployment = msgspec.convert(manifest.deployment, Deployment)
    if not deployment.keep_alive:
        raise ConfigError(f"{manifest.job} was not submitted with --keep-alive")
    site = Site.here(jobs.environ)
    resolved = Resolved(deployment, load_platform(deployment.platform, site), None, {}, ())
    secrets = {name: jobs.environ[name] for name in SECRET_NAMES if jobs.environ.get(name)}
    line = Scheduled(resolved, manifest, secrets, jobs)
    if waiting := line.waiting():
        raise ConfigError(f"{manifest.job} has a successor: {waiting}")
    now, limit = time.time(), manifest.walltime or 0
    terms = _terms(deployment, now + (view.time_left or 0.0) - limit, limit, manifest.ready)
    if terms.is_last:
        raise ConfigError(f"the service ends with {manifest.job}: it is kept alive until {deployment.until}")
    return line.submit(terms.after(manifest.job))


def submit_again(job: str, environ: Mapping[str, str]) -> str:
    """Submit what a job does once more, from inside of it, to start when it has ended; return the new job's handle.

    Raises:
        AegisError: Aegis did not submit it, or nothing can be submitted from this machine.
    """
    jobs = Jobs({name: value for name, value in environ.items() if name not in OWN_VARIABLES})
    manifest = jobs.find(job)
    deployment = msgspec.convert(manifest.deployment, Deployment)
    site = Site.here(environ)
    resolved = Resolved(deployment, load_platform(deployment.platform, site), None, {}, ())
    secrets = {name: environ[name] for name in SECRET_NAMES if environ.get(name)}
    return Scheduled(resolved, manifest, secrets, jobs).submit(After(job=job, ended=True))
