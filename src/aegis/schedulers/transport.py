"""Where a scheduler's commands run and its files lie: here, or at the far end of an ssh connection."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from aegis.errors import SiteError
from aegis.files import write_atomically
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

TIMEOUT = 60.0  # seconds; a Slurm client whose controller is away needs 19 to say so, a dead link to PBS 10


class Done(Struct, frozen=True):
    """What a command answered."""

    code: int
    out: str
    err: str


class Transport(Protocol):
    """The machine that has the scheduler's commands."""

    name: str  # "this machine" or user@host

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that a command has there.

        Raises:
            SchedulerUnavailable: the connection is cut.
        """
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Done:
        """Run a command to its end.

        Args:
            argv: the command; no part of it is read by a shell.
            text: its standard input.
            environ: variables to set besides those that are there; an empty value unsets.
            timeout: seconds.
            repeatable: running it twice does no harm, so that a cut connection is opened again and it is run anew.
                False for what submits: when the connection is cut meanwhile, nobody knows whether it went through.

        Raises:
            SiteError: there is no such command.
            SchedulerUnavailable: it took too long, or the connection is cut.
        """
        ...

    def read(self, path: str, start: int = 0) -> bytes:
        """Return a file from a position on.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            SchedulerUnavailable: the connection is cut.
        """
        ...

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file whole or not at all, and make the folders above it; of a private file (mode 0600) a private one.

        Raises:
            OSError: it cannot be written.
            SchedulerUnavailable: the connection is cut.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def home(self) -> str:
        """Return the user's home directory there."""
        ...

    def forward(self, host: str, port: int) -> AbstractContextManager[tuple[str, int]]:
        """Return an address by which a port of a host over there is reached from here, for as long as it is held."""
        ...


class Here:
    """This machine."""

    name = "this machine"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Done:
        """Run a command to its end."""
        del repeatable  # nothing lies between
        variables = {**self.environ, **(environ or {})}
        try:
            done = subprocess.run(
                list(argv),
                input=text,
                env={name: value for name, value in variables.items() if value},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SchedulerUnavailable(f"{argv[0]} did not answer within {timeout:.0f} s") from None
        except OSError as error:
            raise SiteError(
                f"{argv[0]} cannot be run: {error.strerror}",
                hint=f"is {argv[0]} on PATH? On a login node, load the scheduler's module",
            ) from None
        return Done(done.returncode, done.stdout, done.stderr)

    def read(self, path: str, start: int = 0) -> bytes:
        """Return a file from a position on."""
        with open(path, "rb") as stream:  # noqa: PTH123 - text in, as everywhere in a transport
            stream.seek(start)
            return stream.read()

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file whole or not at all, and make the folders above it."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o777 if mode & 0o077 else 0o700)
        write_atomically(file, content, mode)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - as above

    def home(self) -> str:
        """Return the user's home directory."""
        return self.environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - text

    @contextlib.contextmanager
    def forward(self, host: str, port: int) -> Iterator[tuple[str, int]]:
        """Return the address itself: nothing lies between."""
        yield host, port
