"""What a shell at the far end is told, and how a command's answer is told from what else that shell prints; pure.

The command line is a constant: the user's login shell may be any, and the process table over there shows nothing. The
command itself comes on standard input, up to a NUL; what follows is its own input. A marker on both outputs says where the
greetings of profiles end and the command's own words begin.
"""

from __future__ import annotations

import errno
import os
import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READ = 'IFS= read -rd "" aegis; eval "$aegis"'
LOGIN = f"exec bash -lc '{READ}'"  # schedulers' commands may come from a profile
PLAIN = f"exec bash --norc -c '{READ}'"

REFUSED = b"refused by peer"  # sshd allows no further session on this connection (MaxSessions)

# Each gets its path as $1. `mv -T` and the count: whole or not at all, also when the connection is cut on the way.
READ_FILE = 'exec tail -c "+$2" -- "$1"'
WRITE_FILE = """{ [ -z "$3" ] || umask "$3"; } && mkdir -p -- "$4" && umask 077 || exit
cat >"$5" && [ "$(wc -c <"$5")" -eq "$6" ] && chmod "$2" -- "$5" && mv -fT -- "$5" "$1" && exit
rm -f -- "$5"
exit 1"""
REMOVE_FILE = 'exec rm -f -- "$1"'


class Reply(Struct, frozen=True):
    """What came back from the far end."""

    code: int
    out: bytes
    err: bytes
    began: bool  # the command itself was reached
    missing: bool  # there is no such command


class Command(Struct, frozen=True):
    """What is to be run there."""

    argv: Sequence[str]
    data: bytes = b""  # its standard input
    environ: Mapping[str, str] = {}  # an empty value unsets
    shell: str = PLAIN


def stdin(command: Command, mark: str) -> bytes:
    """Return what the shell reads: the lines that run the command, and the command's own input.

    Raises:
        ConfigError: a part has a zero byte in it.
    """
    argv = command.argv
    lines = [
        f"export {name}={shlex.quote(value)}" if value else f"unset {name}"
        for name, value in command.environ.items()
    ]
    lines += [
        "SHLVL=9",  # bash as the command would take itself for the login shell, and greet
        f"type -P -- {shlex.quote(argv[0])} >/dev/null 2>&1 || {{ printf %s {mark}-; exit 127; }}",
        f"printf %s {mark}+; printf %s {mark}+ >&2",
        f"exec -- {shlex.join(argv)}",
    ]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    if b"\0" in text:
        raise ConfigError(f"a zero byte is in a word for {argv[0]}")
    return text + b"\0" + command.data


def begin(mark: str) -> bytes:
    """Return what stands before a command's own words."""
    return f"{mark}+".encode()


def reply(code: int, out: bytes, err: bytes, mark: str) -> Reply:
    """Return what the command itself said."""
    start = begin(mark)
    if start not in out:
        return Reply(code, out, err, began=False, missing=f"{mark}-".encode() in out)
    _, reached, words = err.partition(start)
    return Reply(code, out.partition(start)[2], words if reached else err, began=True, missing=False)


def os_error(said: bytes, path: str) -> OSError:
    """Return the error that a file command's last words (`tail: x: Permission denied`) stand for."""
    words = said.decode("utf-8", "replace").strip().rpartition(": ")[2]
    codes = {os.strerror(code): code for code in errno.errorcode}
    return OSError(codes.get(words, errno.EIO), words or os.strerror(errno.EIO), path)
