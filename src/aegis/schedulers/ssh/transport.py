"""A scheduler's commands and files at the far end of one ssh connection."""

from __future__ import annotations

import contextlib
import posixpath
import re
import secrets
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from aegis.errors import SiteError
from aegis.schedulers.base import SchedulerUnavailable
from aegis.schedulers.ssh import remote
from aegis.schedulers.ssh.master import check_target, open_master, sockets, users_own
from aegis.schedulers.ssh.relay import CONNECT, Relay
from aegis.schedulers.ssh.remote import Command
from aegis.schedulers.transport import TIMEOUT, Done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aegis.schedulers.ssh.master import Link
    from aegis.schedulers.ssh.remote import Reply

SESSIONS = 8  # at once; sshd's own default limit is 10, and the user may have some
REFUSED_PAUSE = 0.25  # seconds before a refused session is asked for again
BROKEN = 255  # exit code of ssh itself; a command may have it as well
PORT_ATTEMPTS = 5
HOST = re.compile(r"[\w:][\w.:%-]*", re.ASCII)


@contextlib.contextmanager
def connect(target: str, say: Callable[[str], None]) -> Iterator[Ssh]:
    """Log in once, or use the connection that the user has open already; hold it for as long as the block runs.

    Args:
        target: user@host, as ssh takes it.
        say: gets what a person should read meanwhile.

    Raises:
        ConfigError: the target is none.
        SiteError: the login fails.
    """
    own = users_own(check_target(target))
    with sockets(target) as folder:
        yield Ssh(own or open_master(target, folder, say), folder, say)


class Ssh:
    """The machine at the far end."""

    def __init__(self, link: Link, folder: Path, say: Callable[[str], None]) -> None:
        self.name = link.target
        self._link = link
        self._folder = folder
        self._say = say
        self._slots = threading.BoundedSemaphore(SESSIONS)
        self._opening = threading.Lock()
        self._told: Link | None = None  # the last connection whose end was told
        self._environ: dict[str, str] | None = None
        self._forwards: bool | None = None  # None: not known yet

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Done:
        """Run a command to its end, in a login shell's environment."""
        if not repeatable:  # a link that died unnoticed shows itself at a command that harms nobody
            self._ask(["true"], timeout=timeout)
        data = text.encode("utf-8", "surrogateescape")
        answer = self._ask(argv, data, environ, timeout=timeout, shell=remote.LOGIN, repeatable=repeatable)
        if answer.missing:
            raise SiteError(
                f"{argv[0]} cannot be run on {self.name}: there is no such command",
                hint=f"is {argv[0]} on PATH after `ssh {self.name}`?",
            )
        return Done(answer.code, *(part.decode("utf-8", "replace") for part in (answer.out, answer.err)))

    def read(self, path: str, start: int = 0) -> bytes:
        """Return a file from a position on."""
        return self._file(remote.READ_FILE, path, str(start + 1)).out

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file whole or not at all, and make the folders above it."""
        data = content.encode("utf-8", "surrogateescape")
        folder, name = posixpath.split(path)
        folder = folder or "."
        temporary = f"{folder}/.{name}.{secrets.token_hex(6)}.tmp"
        mask = "" if mode & 0o077 else "077"
        self._file(remote.WRITE_FILE, path, f"{mode:o}", mask, folder, temporary, str(len(data)), data=data)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            self._file(remote.REMOVE_FILE, path)

    def home(self) -> str:
        """Return the user's home directory there."""
        return self.environ.get("HOME") or "/"

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that a command has there."""
        if self._environ is None:
            entries = self.run(["env", "-0"]).out.split("\0")
            self._environ = dict(entry.partition("=")[::2] for entry in entries if entry)
        return self._environ

    @contextlib.contextmanager
    def forward(self, host: str, port: int, local: int | None = None) -> Iterator[tuple[str, int]]:
        """Return an address by which a port over there is reached from here, as long as the connection lasts.

        Args:
            host: as the far side knows it.
            port: there.
            local: the port here (default: a free one).

        Raises:
            SiteError: the port here is taken, or the host is none.
            SchedulerUnavailable: the connection is cut.
        """
        if not HOST.fullmatch(host):
            raise SiteError(f"{host!r} is no host")
        far = f"[{host}]" if ":" in host else host
        with contextlib.ExitStack() as stack:
            if self._is_forwarded(host, far, port):
                near = stack.enter_context(self._forward(f"{far}:{port}", local))
            else:
                relay = Relay(self._link, self._slots, host, port)
                try:
                    near = stack.enter_context(relay.listen(local or 0))
                except OSError:
                    raise _taken(local) from None
            yield "127.0.0.1", near

    @contextlib.contextmanager
    def _forward(self, far: str, local: int | None) -> Iterator[int]:
        for _ in range(PORT_ATTEMPTS):
            link, near = self._link, local or _free_port()
            route = ("-L", f"127.0.0.1:{near}:{far}")
            if link.control("forward", *route):
                break
            if not link.is_alive:
                self._reopen(link)
        else:
            raise _taken(near)
        try:
            yield near
        finally:
            link.control("cancel", *route)

    def _is_forwarded(self, host: str, far: str, port: int) -> bool:
        """Tell whether sshd forwards ports; only a port that the machine itself reaches can tell that it does not."""
        if self._forwards is None:
            leads = self._link.leads_to(far, port)
            if leads or (
                leads is False and self._ask(["bash", "-c", CONNECT, "aegis", host, str(port)]).code == 0
            ):
                self._forwards = bool(leads)
        return self._forwards is not False

    @contextlib.contextmanager
    def onward(self, target: str) -> Iterator[Ssh]:
        """Log in to a machine that is reached from there.

        Raises:
            SiteError: the login fails.
            SchedulerUnavailable: the connection is cut.
        """
        link = self._link if self._link.is_alive else self._reopen(self._link)
        beyond = open_master(check_target(target), self._folder, self._say, through=link)
        try:
            yield Ssh(beyond, self._folder, self._say)
        finally:
            beyond.control("exit")

    @property
    def connection(self) -> Link:
        """The connection that there is, or was: another one after it was cut, without any port that was forwarded."""
        return self._link

    @property
    def is_alive(self) -> bool:
        """Whether the connection is there."""
        return self._link.is_alive

    def _file(self, script: str, path: str, *args: str, data: bytes = b"") -> Reply:
        done = self._ask(["bash", "-c", script, "aegis", path, *args], data, {"LC_ALL": "C"})
        if done.code:
            raise remote.os_error(done.err, path)
        return done

    def _ask(
        self,
        argv: Sequence[str],
        data: bytes = b"",
        environ: Mapping[str, str] | None = None,
        *,
        timeout: float = TIMEOUT,
        shell: str = remote.PLAIN,
        repeatable: bool = True,
    ) -> Reply:
        """Run a command; where the connection is cut and it may be repeated, connect anew and try once more."""
        link, command = self._link, Command(argv, data, environ or {}, shell)
        answer = self._session(link, command, timeout)
        if answer.code == BROKEN and not link.is_alive:
            if not repeatable:
                raise SchedulerUnavailable(
                    f"the connection to {self.name} was cut while {argv[0]} ran",
                    hint=f"whether {argv[0]} went through is not known: look before you repeat it",
                )
            link = self._reopen(link)
            answer = self._session(link, command, timeout)
            if answer.code == BROKEN and not link.is_alive:
                raise SchedulerUnavailable(f"the connection to {self.name} is cut again and again")
        if not answer.began and not answer.missing:
            said = " ".join((answer.err or answer.out).decode("utf-8", "replace").split())
            said = "".join(char for char in said if char.isprintable())
            raise SiteError(
                f"the login shell of {self.name} does not run commands: {said or f'exit {answer.code}'}",
                hint=f"does `ssh {self.name} bash -lc true` work?",
            )
        return answer

    def _session(self, link: Link, command: Command, timeout: float) -> Reply:
        """Run a command once; wait while sshd allows no further session, for then it was not reached."""
        mark = f"aegis-{secrets.token_hex(8)}"
        words = remote.stdin(command, mark)
        deadline = time.monotonic() + timeout
        with self._slots:
            while True:
                try:
                    done = subprocess.run(
                        [*link.argv(), command.shell],
                        input=words,
                        capture_output=True,
                        timeout=timeout,
                        check=False,
                    )
                except subprocess.TimeoutExpired:
                    raise SchedulerUnavailable(
                        f"{command.argv[0]} did not answer within {timeout:.0f} s on {self.name}"
                    ) from None
                answer = remote.reply(done.returncode, done.stdout, done.stderr, mark)
                if answer.began or remote.REFUSED not in answer.err:
                    return answer
                if time.monotonic() > deadline:
                    raise SchedulerUnavailable(f"{self.name} allows no further session on this connection")
                time.sleep(REFUSED_PAUSE)

    def _reopen(self, dead: Link) -> Link:
        """Return a living connection; of several threads that miss it, one logs in."""
        with self._opening:
            if self._link is not dead:
                return self._link
            if self._told is not dead:
                self._told = dead
                self._say(f"the connection to {self.name} was cut; opening it again")
            try:
                self._link = users_own(self.name) or open_master(self.name, self._folder, self._say)
            except SiteError as error:
                raise SchedulerUnavailable(error.message, hint=error.hint) from None
            return self._link


def _taken(port: int | None) -> SiteError:
    return SiteError(f"port {port} of this machine cannot be listened on", hint="choose another")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
