"""Who stages: this process by copies, or the programs on the nodes, over TCP."""

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
from aegis.staging.events import Done, Listening, NodeResult, Progress, read_event
from aegis.staging.listing import encode
from aegis.staging.local import clean_here, stage_here, verify_here

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item
    from aegis.staging.stage import Action, Stager, Tell

LEAVE_SECONDS: Final = 10.0  # for programs on nodes to end by themselves
WATCH_SECONDS: Final = 0.2  # between looks at what started them


class OnThisMachine:
    """The stager where all nodes are this machine: what several of them need is there once."""

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Work on one item after the other; a failure of one leaves the others."""
        began, read = time.monotonic(), 0
        for number, item in enumerate(items):
            moved = 0

            def advanced(count: int, number: int = number, item: Item = item) -> None:
                nonlocal moved
                moved += count
                tell(_advanced(number, moved, item, began))

            skipped, error = False, ""
            try:
                if action == "verify":
                    error = verify_here(item)
                elif action == "clean":
                    skipped = not clean_here(item)
                else:
                    skipped = stage_here(item, _one_at_a_time(advanced)).skipped
            except AegisError as problem:
                error = problem.message
            read += moved
            for host in item.hosts or hosts:
                tell(
                    NodeResult(
                        item=number,
                        host=host,
                        ok=not error,
                        skipped=skipped,
                        bytes=moved,
                        error=error or None,
                    )
                )
        seconds = time.monotonic() - began
        tell(Done(seconds=seconds, bytes_read=read, rate=read / seconds if seconds else 0.0))


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
        try:
            self._run(folder, items, tcp.order(hosts), action, tell)
        except OSError as error:
            raise SiteError(
                f"staging over TCP cannot be started: {error.filename or ''}: {error.strerror}"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
        try:
            for line in head.stdout or ():
                event = read_event(line)
                if isinstance(event, Listening):
                    where = f"{event.address or self.address}:{event.port}"
                    commands = tcp.node_commands(stager, self.launcher, hosts, where, nodes_file)
                    for number, command in enumerate(commands):
                        log = folder / f"errors.{number}"
                        whose = (hosts[number],) if len(commands) == len(hosts) else tuple(hosts)
                        starters.append(_Starter(whose, command[0], log, self._start(command, log)))
                    threading.Thread(target=_watch, args=(starters, head), daemon=True).start()
                elif event is not None:
                    tell(event)
            code = head.wait()
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
        if code > 1 or (code and not starters):
            raise AegisError(f"the stager's head ended with {code}{_last_line(errors)}")

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

    hosts: tuple[str, ...]
    program: str
    log: Path
    process: subprocess.Popen[bytes]


def _watch(starters: Sequence[_Starter], head: subprocess.Popen[bytes]) -> None:
    """Tell the head of starters that have ended, so that it does not wait for nodes that will not come."""
    left = list(starters)
    while left and head.poll() is None and head.stdin is not None:
        for each in [each for each in left if each.process.poll() is not None]:
            left.remove(each)
            why = f"{each.program} ended with {each.process.returncode}{_last_line(each.log)}"
            lines = "".join(f"{host} {why}\n" for host in each.hosts)
            with contextlib.suppress(OSError, ValueError):  # the head has ended meanwhile
                head.stdin.write(lines.encode())
                head.stdin.flush()
        time.sleep(WATCH_SECONDS)


class OneThenAnother:
    """A stager that leaves to another what it has not done when it breaks down."""

    def __init__(self, first: Stager, second: Stager, say: Callable[[str], None]) -> None:
        self.first = first
        self.second = second
        self.say = say

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Work on all items; nodes for which something is decided are not asked again.

        Raises:
            AegisError: the other breaks down, too.
        """
        left = {(number, host) for number, item in enumerate(items) for host in item.hosts or hosts}

        def heard(event: Event) -> None:
            if isinstance(event, NodeResult):
                left.discard((event.item, event.host))
            tell(event)

        try:
            self.first.run(items, hosts, action, heard)
        except AegisError as error:
            if not left:
                raise
            self.say(f"{error.message}; going on in another way")
            self._go_on(items, hosts, left, action, tell)

    def _go_on(
        self,
        items: Sequence[Item],
        hosts: Sequence[str],
        left: set[tuple[int, str]],
        action: Action,
        tell: Tell,
    ) -> None:
        numbers = sorted({number for number, _ in left})
        remaining = [
            structs.replace(items[number], hosts=tuple(host for host in hosts if (number, host) in left))
            for number in numbers
        ]

        def renumbered(event: Event) -> None:
            if isinstance(event, NodeResult | Progress):
                event = structs.replace(event, item=numbers[event.item])
            tell(event)

        needed = {host for _, host in left}
        self.second.run(remaining, [host for host in hosts if host in needed], action, renumbered)


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
    try:
        lines = file.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""


def _advanced(number: int, moved: int, item: Item, began: float) -> Progress:
    return Progress(
        item=number,
        bytes=moved,
        total=item.size,
        nodes_done=0,
        nodes=len(item.hosts),
        seconds=time.monotonic() - began,
    )


def _one_at_a_time(tell: Callable[[int], None]) -> Callable[[int], None]:
    import threading  # noqa: PLC0415 - only where threads are

    lock = threading.Lock()

    def locked(count: int) -> None:
        with lock:
            tell(count)

    return locked
