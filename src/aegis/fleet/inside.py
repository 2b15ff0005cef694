"""What a job learns of itself from its environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import AegisError, ConfigError
from aegis.schedulers.base import SECRETS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICY_VARIABLE = "AEGIS_AGENT_POLICY"  # JSON of seconds by name (`Policy` of agent/vitals.py): for tests, whose time is short


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
