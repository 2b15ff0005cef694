"""The one connection: opened with one prompt, shared by every later session, and never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTROL_TIMEOUT = 10.0  # seconds for a word with the master, which is a process of this machine
PROBE_TIMEOUT = 2.0  # seconds to see whether a port is forwarded: sshd refuses at once
TICK = 0.1  # seconds
LONGEST = (
    60  # characters of a folder for sockets: a socket's path may have 104, of which ssh takes some for itself
)

TARGET = re.compile(r"(?:ssh://)?(?:[\w.][\w.+@\\-]*@)?[\w\[][\w.:%\]-]*", re.ASCII)

# A dead link is noticed within a minute. What the user's configuration forwards besides is not ours to open.
MASTER = (
    *("-M", "-f", "-N", "-T"),
    *("-o", "ControlPersist=yes"),
    *("-o", "ConnectTimeout=30"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),
)
# Without configuration: the connection is there, and nothing else is wanted of it. Where it is not there any more, ssh
# would log in anew; the proxy that fails at once keeps it from doing so.
REUSE = (
    *("-F", "none"),
    *("-o", "BatchMode=yes"),
    *("-o", "ControlMaster=no"),
    *("-o", "ProxyCommand=false"),
    *("-o", "LogLevel=ERROR"),
    "-T",
)
# Waits until whoever holds its input has ended, in whatever way, then takes away what is left.
JANITOR = """read -r _
for socket in "$1"/[0-9]*; do ssh -F none -S "$socket" -O exit -- "$2"; done
rm -rf -- "$1\""""


class Link(Struct, frozen=True):
    """A connection by its control socket."""

    target: str
    socket: str

    def argv(self, *options: str) -> list[str]:
        """Return the beginning of a command that uses it."""
        return ["ssh", *REUSE, "-S", self.socket, *options, "--", self.target]

    def control(self, verb: str, *options: str) -> bool:
        """Have a word with the master; False where it does not want to, or is gone."""
        return _ends(self.argv("-O", verb, *options)) == 0

    @property
    def is_alive(self) -> bool:
        """Whether the master is there."""
        return self.control("check")

    def leads_to(self, host: str, port: int) -> bool | None:
        """Tell whether sshd connects to a port over there; None where it takes long."""
        code = _ends(self.argv("-W", f"{host}:{port}"), PROBE_TIMEOUT)
        return None if code is None else code == 0

    @property
    def responds(self) -> bool:
        """Whether the far end is there as well: a master may not have noticed yet that it is not."""
        return _ends([*self.argv(), "true"]) is not None


def check_target(target: str) -> str:
    """Return the target if it can be nothing else.

    Raises:
        ConfigError: it is no `user@host`.
    """
    if not TARGET.fullmatch(target):
        raise ConfigError(
            f"{target!r} is no place to log in to",
            hint="give user@host, ssh://user@host:port, or a host of ~/.ssh/config",
        )
    return target


def users_own(target: str) -> Link | None:
    """Return the connection that the user has open already, by the control path of his own configuration.

    Raises:
        SiteError: there is no ssh, or its configuration is wrong.
    """
    try:
        done = subprocess.run(
            ["ssh", "-G", "--", target],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=CONTROL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise SiteError(
            f"ssh cannot be run: {error.strerror}", hint="--remote needs the OpenSSH client on PATH"
        ) from None
    if done.returncode:
        raise SiteError(f"ssh cannot log in to {target}: {done.stderr.strip() or 'no reason given'}")
    found = re.search(r"^controlpath (?!none$)(.+)$", done.stdout, re.MULTILINE)
    link = Link(target, found[1].replace("%", "%%")) if found else None
    return link if link and link.is_alive and link.responds else None


@contextlib.contextmanager
def sockets(target: str) -> Iterator[Path]:
    """Yield a private folder for sockets; however this process ends, its masters end and the folder goes."""
    base = tempfile.gettempdir()
    plain = len(base) <= LONGEST and not set(base) & set("%$")  # ssh would expand these
    folder = tempfile.mkdtemp(prefix="aegis-ssh-", dir=base if plain else "/tmp")  # noqa: S108 - mode 0700
    janitor = subprocess.Popen(
        ["/bin/sh", "-c", JANITOR, "aegis", folder, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield Path(folder)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            janitor.communicate(timeout=CONTROL_TIMEOUT)


def open_master(target: str, folder: Path, say: Callable[[str], None], through: Link | None = None) -> Link:
    """Log in; ssh itself asks for the code, on the terminal or through SSH_ASKPASS.

    Args:
        target: user@host.
        folder: for the socket.
        say: gets what ssh prints beside its prompts.
        through: a connection to a machine from which the target is reached.

    Raises:
        SiteError: it failed; the message is ssh's own.
    """
    number = sum(1 for _ in folder.glob("*.log"))  # a socket per attempt: none is taken for another's
    link, log = Link(target, str(folder / str(number))), folder / f"{number}.log"
    way = ["-o", f"ProxyCommand={shlex.join(through.argv('-W', '%h:%p'))}"] if through else []
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["ssh", *MASTER, *way, "-S", link.socket, "--", target],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,  # a file: the master keeps it open
        )
    try:
        last_words = _pass_on(process, log, say)
    finally:
        if process.poll() is None:
            process.terminate()  # not killed: it has to turn the terminal's echo on again
            process.wait()
    if process.returncode or not link.is_alive:
        raise SiteError(
            f"cannot log in to {target}: {last_words or 'ssh gives no reason'}",
            hint=_hint(target, last_words),
        )
    return link


def _ends(argv: list[str], timeout: float | None = None) -> int | None:
    """Return the exit code of a command; None where it takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout or CONTROL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _pass_on(process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> str:
    """Say what ssh prints beside its prompts, a tick late: the last words of one that fails belong in the error."""
    position = 0
    lines: list[str] = []  # not said yet
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TICK)
        new = log.read_bytes()[position:]
        new = new[: new.rfind(b"\n") + 1]
        position += len(new)
        fresh = new.decode("utf-8", "replace").splitlines()
        if process.returncode:
            return "; ".join(line for line in (*lines, *fresh) if line)
        for line in lines if process.returncode is None else (*lines, *fresh):
            say(line)
        if process.returncode == 0:
            return ""
        lines = fresh


def _hint(target: str, last_words: str) -> str:
    if "Permission denied" not in last_words:
        return f"does `ssh {target}` work?"
    if "SSH_ASKPASS" in os.environ or _has_terminal():
        return "a one-time code is good once: wait for the next"
    return "nobody could be asked for a code: use a terminal, or SSH_ASKPASS with SSH_ASKPASS_REQUIRE=force"


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
