"""Staging without MPI: its programs started on this machine and on the nodes, and what they say or why they died."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct, structs

from aegis.errors import AegisError, SiteError
from aegis.files import PRIVATE, write_atomically
from aegis.staging import tcp
from aegis.staging.archive import stager_archive
from aegis.staging.events import Done, Listening, NodeResult
from aegis.staging.listen import at_first, events
from aegis.staging.listing import encode
from aegis.staging.runners import narrowed
from aegis.step import one_node_was_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item
    from aegis.staging.stage import Action, Tell

LEAVE_SECONDS: Final = 3.0  # for programs on nodes to end by themselves: all is decided
WATCH_SECONDS: Final = 0.2  # between looks at what started them


class OverTcp(Struct, frozen=True, kw_only=True):
    """The stager of the standard library, started on every node by the site's launcher."""

    shared: Path  # a folder that all nodes see
    launcher: tcp.Launcher
    address: str  # of this machine, as the nodes reach it
    python: str
    environ: dict[str, str]
    interface: str = ""
    tied: Callable[[list[str]], list[str]] = list  # makes a command end with this process

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Start the head and the nodes' programs, and tell what the head prints.

        Raises:
            SiteError: they cannot be started.
            AegisError: the head refuses.
        """
        try:
            self.shared.mkdir(parents=True, exist_ok=True)
            # a program that ssh starts has another working directory
            folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.shared.absolute()))
        except OSError as error:
            raise SiteError(
                f"{self.shared}: {error.strerror}", hint="name a folder that all nodes see: --log-dir"
            ) from None
        lost: list[NodeResult] = []

        def heard(event: Event) -> None:
            if isinstance(event, NodeResult) and not event.ok and self._may_be_apart(folder, hosts):
                lost.append(event)
            else:
                tell(event)

        try:
            self._run(folder, items, tcp.order(hosts), action, heard)
        except OSError as error:
            raise SiteError(
                f"staging over TCP cannot be started: {error.filename or ''}: {error.strerror}"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if lost:
            left = {(each.item, each.host) for each in lost}
            remaining, needing, renumbered = narrowed(items, hosts, left, tell)
            apart = structs.replace(self, launcher=structs.replace(self.launcher, one_each=True))
            apart.run(remaining, needing, action, renumbered)

    def _may_be_apart(self, folder: Path, hosts: Sequence[str]) -> bool:
        """Tell whether srun has failed because of one node, which ends its step on all of them: one for each may do better."""
        said = "\n".join(_lines(folder / "errors.0"))
        return not self.launcher.one_each and one_node_was_refused(self.launcher.kind, len(hosts), said)

    def _run(
        self, folder: Path, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell
    ) -> None:
        list_file, nodes_file, errors = folder / "list", folder / "nodes", folder / "errors"
        stager = tcp.Stager(
            archive=folder / "stager.pyz",
            secret_file=folder / "secret",
            python=self.python,
            interface=self.interface,
        )
        write_atomically(list_file, encode(items))
        write_atomically(nodes_file, "".join(f"{host}\n" for host in hosts))
        write_atomically(stager.archive, stager_archive())
        write_atomically(stager.secret_file, secrets.token_hex(32), PRIVATE)
        head = self._start(stager.head(list_file, nodes_file, action), errors, heard=True)
        starters: list[_Starter] = []
        finished = False
        try:
            for event in events(head.stdout, at_first(items, hosts)):
                finished |= isinstance(event, Done)
                if isinstance(event, Listening):
                    where = f"{event.address or self.address}:{event.port}"
                    for command in tcp.node_commands(stager, self.launcher, hosts, where, nodes_file):
                        log = folder / f"errors.{len(starters)}"
                        starters.append(_Starter(command[0], log, self._start(command, log)))
                    threading.Thread(target=_watch, args=(starters, hosts, head), daemon=True).start()
                else:
                    tell(event)
            head.wait()
        except BaseException:  # nobody waits for it any more
            for process in (head, *(each.process for each in starters)):
                process.terminate()
            raise
        finally:
            _end([head, *(each.process for each in starters)])
            for stream in (head.stdin, head.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if not finished:
            raise AegisError(f"the stager's head ended with {head.returncode}{_last_line(errors)}")

    def _start(self, command: list[str], log: Path, *, heard: bool = False) -> subprocess.Popen[bytes]:
        with log.open("wb") as errors:
            return subprocess.Popen(
                self.tied(command),
                stdin=subprocess.PIPE if heard else subprocess.DEVNULL,
                stdout=subprocess.PIPE if heard else errors,
                stderr=errors,
                env=self.environ,
            )


class _Starter(NamedTuple):
    """What starts the stager on one node, or on all."""

    program: str
    log: Path
    process: subprocess.Popen[bytes]


def _watch(starters: Sequence[_Starter], hosts: Sequence[str], head: subprocess.Popen[bytes]) -> None:
    """Tell the head of starters that have ended, so that it does not wait for nodes that will not come."""
    one_each = len(starters) == len(hosts)
    left = dict(enumerate(starters))
    while left and head.poll() is None and head.stdin is not None:
        for number, each in [(n, each) for n, each in left.items() if each.process.poll() is not None]:
            del left[number]
            why = f"{each.program} ended with {each.process.returncode}{_last_line(each.log)}"
            lines = "".join(f"{host} {why}\n" for host in ((hosts[number],) if one_each else hosts))
            with contextlib.suppress(OSError, ValueError):  # the head has ended meanwhile
                head.stdin.write(lines.encode())
                head.stdin.flush()
        time.sleep(WATCH_SECONDS)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Give programs time to end by themselves; then end them."""
    deadline = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(file: Path) -> str:
    lines = _lines(file)
    return f": {lines[-1]}" if lines else ""


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").strip().splitlines()
    except OSError:
        return []
