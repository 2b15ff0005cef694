"""What a job learns of itself from its environment."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.errors import AegisError, ConfigError
from aegis.schedulers.base import SECRETS_VARIABLE, notice
from aegis.spec.walltime import format_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICY_VARIABLE = "AEGIS_AGENT_POLICY"  # JSON of seconds by name (`Policy` of agent/vitals.py): for tests, whose time is short

NOTICE_SLACK: Final = 75.0  # seconds: Slurm may send its notice up to a minute early


class Walltime:
    """The time limit of this job, and what it means for its head.

    Args:
        limit: seconds; None: there is none.
        environ: of the job.
        local: this machine gives the time, and no scheduler.
    """

    def __init__(self, limit: int | None, environ: Mapping[str, str], *, local: bool) -> None:
        self.limit, self.local = limit, local
        self._pbs = bool(environ.get("PBS_JOBID"))
        self._began = seconds(environ.get("SLURM_JOB_START_TIME"))
        self._started = time.monotonic()

    @property
    def sentence(self) -> str:
        """Why a job ended that had used it up."""
        return f"ended at its walltime of {format_walltime(self.limit or 0)}"

    def left(self) -> float:
        """Return the seconds that the job still has."""
        elapsed = time.time() - self._began if self._began else time.monotonic() - self._started
        return self.limit - elapsed if self.limit else math.inf

    def until_notice(self) -> float:
        """Return the seconds until servers are stopped, so that they end in good order."""
        return self.left() - notice(self.limit or 0)

    def is_over(self) -> bool:
        """Tell whether to stop unasked: PBS gives no notice, and 10 s from TERM to KILL; Slurm sends one."""
        return (self._pbs and self.until_notice() < 0) or (self.local and self.left() < 0)

    def explains_a_signal(self) -> bool:
        """Tell whether a signal now is the notice before the end."""
        if not self.limit:
            return False
        return self.left() < notice(self.limit) + NOTICE_SLACK < self.limit


def handle_of(environ: Mapping[str, str]) -> str | None:
    """Return the handle of the scheduler's job that this process is part of."""
    if job := environ.get("SLURM_JOB_ID"):
        return f"slurm://{job}"
    if job := environ.get("PBS_JOBID"):
        return f"pbs://{job}"
    return None


def submitted_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that the submission left for this job."""
    file = environ.get(SECRETS_VARIABLE)
    if not file:
        return {}
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError) as error:
        raise AegisError(
            f"the secrets of this job cannot be read: {file}: {error}", hint="submit it again"
        ) from None


def patience(environ: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds of the agents' policy that are to be others than usual."""
    try:
        return msgspec.json.decode(environ.get(POLICY_VARIABLE) or "{}", type=dict[str, float])
    except msgspec.DecodeError as error:
        raise ConfigError(f"{POLICY_VARIABLE} is no JSON object of seconds: {error}") from None


def seconds(text: str | None) -> float:
    """Return a time of the environment; 0 where there is none, or none that can be read."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
