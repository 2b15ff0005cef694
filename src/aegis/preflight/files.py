"""How the files of the machine that a job is submitted from are read: this one, or a login node far away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Ask(Struct, frozen=True):
    """Something that is about to be asked of a path."""

    verb: Literal["look", "names", "read"]
    path: str
    limit: int = 0  # of `read`


class Files(Protocol):
    """The files of one machine. No answer is an error: what cannot be seen is not there."""

    seen: bool  # False: nobody can look at them from here

    def absolute(self, path: str) -> str:
        """Return a path as that machine means it."""
        ...

    def expect(self, asked: Iterable[Ask]) -> None:
        """Take note of what will be asked next, so that a far machine is asked once."""
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is such a path."""
        ...

    def is_dir(self, path: str) -> bool:
        """Tell whether it is a directory."""
        ...

    def writable(self, folder: str) -> bool:
        """Tell whether files can be made in a directory."""
        ...

    def names(self, folder: str) -> Mapping[str, int]:
        """Return what lies in a directory, with sizes in bytes; links that lead nowhere are left out."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file."""
        ...


class LocalFiles:
    """The files of this machine."""

    seen = True

    def absolute(self, path: str) -> str:
        """Return the path from the current directory on, with `~` replaced; links stay as the user wrote them."""
        try:
            return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - text; unknown users stay
        except ValueError:  # a NUL in it: there is no such path, and that is found out later
            return path

    def expect(self, asked: Iterable[Ask]) -> None:
        """Do nothing: looking is cheap here."""

    def exists(self, path: str) -> bool:
        """Tell whether there is such a path."""
        return os.path.exists(path)  # noqa: PTH110 - never an error, whatever the path says

    def is_dir(self, path: str) -> bool:
        """Tell whether it is a directory."""
        return os.path.isdir(path)  # noqa: PTH112 - as above

    def writable(self, folder: str) -> bool:
        """Tell whether files can be made in a directory."""
        try:
            return os.access(folder, os.W_OK | os.X_OK)
        except ValueError:  # a NUL in the path
            return False

    def names(self, folder: str) -> dict[str, int]:
        """Return what lies in a directory, with sizes in bytes."""
        found = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        found[entry.name] = entry.stat().st_size
                    except OSError:
                        continue
        except (OSError, ValueError):
            return {}
        return found

    def read(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file."""
        try:
            if not os.path.isfile(path):  # noqa: PTH113 - a pipe would be waited for
                return b""
            with Path(path).open("rb") as stream:
                return stream.read(limit)
        except (OSError, ValueError):
            return b""


class UnseenFiles:
    """The files of a machine that nobody can look at from here: what is named is taken to be there."""

    seen = False

    def absolute(self, path: str) -> str:
        """Return the path."""
        return path

    def expect(self, asked: Iterable[Ask]) -> None:
        """Do nothing: there is nothing to ask."""

    def exists(self, path: str) -> bool:
        """Return that it is there."""
        del path
        return True

    def is_dir(self, path: str) -> bool:
        """Return that it is a directory, where a directory is asked for."""
        del path
        return True

    def writable(self, folder: str) -> bool:
        """Return that files can be made there."""
        del folder
        return True

    def names(self, folder: str) -> dict[str, int]:
        """Return nothing, for nobody knows."""
        del folder
        return {}

    def read(self, path: str, limit: int) -> bytes:
        """Return nothing, as above."""
        del path, limit
        return b""
