"""vec-inf's names for what can go wrong; each is also the AegisError that the command line knows.

ModelConfigurationError        ConfigError
├── MissingRequiredFieldsError   and ValueError
└── ModelNotFoundError           NotFoundError, and KeyError
SlurmJobError                  SiteError, and RuntimeError: of any scheduler
├── JobNotFoundError             NotFoundError
├── JobDeadlineError             DeadlineError
└── SchedulerSilentError         SchedulerUnavailable
ServerError                    the servers of a job are not there
└── ServerDeadlineError          DeadlineError
APIError                       never raised; programs that catch it go on to work
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from aegis.errors import AegisError, ConfigError, DeadlineError, NotFoundError, SiteError
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Names = Mapping[type[AegisError], type[AegisError]]

MISSING = re.compile(r"takes no job without `|` is required")  # how the checks say that nobody gave a value


class APIError(AegisError):
    """The base of other errors in vec-inf's documentation."""


class ModelConfigurationError(ConfigError):
    """The model cannot be launched as it is asked for; the message has every reason."""


class MissingRequiredFieldsError(ModelConfigurationError, ValueError):
    """A value that the site insists on is missing."""


class ModelNotFoundError(NotFoundError, ModelConfigurationError, KeyError):
    """The catalog has no such model."""

    def __str__(self) -> str:
        return self.message  # a KeyError shows its argument quoted


class SlurmJobError(SiteError, RuntimeError):
    """The scheduler, whichever it is, refuses."""


class JobNotFoundError(NotFoundError, SlurmJobError):
    """There is no such job."""


class JobDeadlineError(DeadlineError, SlurmJobError):
    """The job has not ended in time."""


class SchedulerSilentError(SchedulerUnavailable, SlurmJobError):
    """The scheduler does not answer; asking again may help."""


class ServerError(AegisError):
    """The servers of a job failed, or ended before they were ready."""


class ServerDeadlineError(DeadlineError, ServerError):
    """The servers of a job are not ready in time."""


ABOUT_JOBS: Names = {
    NotFoundError: JobNotFoundError,
    DeadlineError: JobDeadlineError,
    SchedulerUnavailable: SchedulerSilentError,
    SiteError: SlurmJobError,
}
ABOUT_LAUNCHES: Names = {
    **ABOUT_JOBS,
    NotFoundError: ModelNotFoundError,
    ConfigError: ModelConfigurationError,
}
ABOUT_SERVERS: Names = {**ABOUT_JOBS, DeadlineError: ServerDeadlineError, AegisError: ServerError}


@contextlib.contextmanager
def named(names: Names) -> Iterator[None]:
    """Raise errors under vec-inf's names, as their message, hint and exit code are."""
    try:
        yield
    except AegisError as error:
        kind = next((names[each] for each in type(error).__mro__ if each in names), None)
        if kind is ModelConfigurationError and MISSING.search(error.message):
            kind = MissingRequiredFieldsError
        if kind is None:
            raise
        raise kind(error.message, hint=error.hint) from error
