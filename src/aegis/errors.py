"""Every error of Aegis that a user can act on.

AegisError                  1  the thing failed
├── ConfigError             2  what was asked for is wrong
│   ├── DeploymentError        a file or its flags, all problems at once
│   └── PlacementError         it cannot fit, with the arithmetic
├── SiteError               3  a scheduler, service or tool of the site is missing or refuses
│   └── RegistryUnreachable    nothing answers at the registry's address
├── NotFoundError           4  no such job, instance, platform or service
├── DeadlineError           5  it took longer than allowed
├── InterruptedByUser       6  Ctrl-C
└── PartialSuccess          7  some of it worked

The numbers are the exit codes of every command. `transient` tells a caller that asking again may help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class AegisError(Exception):
    """The thing that was asked for failed."""

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(AegisError):
    """What was asked for is wrong, and asking again will not help."""

    exit_code = 2


class Problem(NamedTuple):
    """One thing wrong in a file, an environment variable or a flag."""

    where: str  # "config.yaml:12", "--walltime" or "AEGIS_QUEUE"
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class DeploymentError(ConfigError):
    """A deployment, a table or another file has problems; all of them are listed."""

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class PlacementError(ConfigError):
    """The instances cannot be placed on the nodes; the message shows the arithmetic."""


class SiteError(AegisError):
    """A scheduler, service or tool of the site is missing, refuses or does not answer."""

    exit_code = 3


class RegistryUnreachable(SiteError):
    """Nothing answers at the registry's address, or what answers is no registry."""

    transient = True


class NotFoundError(AegisError):
    """There is no such job, instance, platform or service."""

    exit_code = 4


class DeadlineError(AegisError):
    """It took longer than it was allowed to."""

    exit_code = 5


class InterruptedByUser(AegisError):
    """The user pressed Ctrl-C."""

    exit_code = 6


class PartialSuccess(AegisError):
    """Some of it worked, some did not; the message says which."""

    exit_code = 7
