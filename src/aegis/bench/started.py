"""Commands on many nodes: `runner.py` started on each by the site's launcher, or here, and what became of every command.

One step starts the runners of all nodes (srun, mpiexec); ssh has one process a node. What is to run lies in files of a
folder that all nodes see, so neither arguments nor processes grow with the number of endpoints.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from aegis.bench.serve import reason_of
from aegis.files import PRIVATE, write_atomically
from aegis.step import MOST_APART, SSH, one_node_was_refused, step_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Launcher = Literal["local", "ssh", "srun", "mpiexec"]

RUNNER: Final = Path(__file__).with_name("runner.py")
LOOK_SECONDS: Final = {
    True: 0.1,
    False: 1.0,
}  # between looks at the folder; on a shared file system a look is dear
APPEAR_SECONDS: Final = 10.0  # for what other nodes wrote to be seen here
LATE_SECONDS: Final = 60.0  # for a node to start and to end its commands, besides their own time
LEAVE_SECONDS: Final = 8.0  # for runners to end their commands


class Kind(Struct, frozen=True):
    """What many commands have in common."""

    argv: list[str]  # their first words
    env: dict[str, str]


class Run(Struct, frozen=True):
    """One command."""

    number: int
    kind: int
    words: list[str]  # after those of its kind
    env: dict[str, str] = {}


class Order(Struct, frozen=True, kw_only=True):
    """The commands of one node."""

    node: str  # "": this machine
    runs: list[Run]
    at_once: int
    seconds: float  # that each may take


class Ended(Struct, frozen=True):
    """What became of a command."""

    code: int | None  # None: nobody knows
    late: bool = False
    reason: str = ""  # the line of its standard error that says most


class Way(Struct, frozen=True, kw_only=True):
    """How the runners are started."""

    launcher: Launcher
    python: str
    environ: dict[str, str]  # of the launcher
    words: tuple[str, ...] = ()  # the site's own, after the launcher's
    group: str = ""  # srun: the component of the job
    tied: Callable[[list[str]], list[str]] = list  # makes a command end with this process


class _Step(Struct):
    """One process that starts the runners of some nodes."""

    command: list[str]
    orders: list[int]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


class Steps:
    """The commands of all nodes while they run.

    Args:
        folder: new, empty, for its owner alone, and seen by all nodes; what commands write lies there, too.
        kinds: what commands have in common.
        orders: one for each node.
        secrets: variables that no command line may show.
        way: how the runners are started.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Sequence[Kind],
        orders: Sequence[Order],
        secrets: dict[str, str],
        way: Way,
    ) -> None:
        self.folder = folder
        self.orders = orders
        self.way = way
        self.ended: dict[int, Ended] = {}
        encode = msgspec.json.encode
        write_atomically(folder / "runner.py", RUNNER.read_bytes())
        write_atomically(folder / "kinds", encode(kinds))
        write_atomically(folder / "orders", b"".join(encode(order) + b"\n" for order in orders))
        write_atomically(folder / "secrets", encode(secrets), PRIVATE)
        there = [number for number, order in enumerate(orders) if order.node]
        here = [number for number, order in enumerate(orders) if not order.node]
        self.steps = [self._step(self._runner(number), [number]) for number in here]
        if there and way.launcher in {"srun", "mpiexec"}:
            nodes = folder / "nodes"
            write_atomically(nodes, "".join(f"{orders[number].node}\n" for number in there))
            self.steps.append(self._step([*self._words(len(there), str(nodes)), *self._runner()], there))
        else:
            self.steps += [self._apart(number) for number in there]

    def run(self, tell: Callable[[int], None]) -> dict[int, Ended]:
        """Run everything and return what became of each command; `tell` hears how many have ended.

        Raises:
            OSError: a launcher cannot be started.
        """
        total = sum(len(order.runs) for order in self.orders)
        pause = LOOK_SECONDS[all(not order.node for order in self.orders)]
        deadline = time.monotonic() + self._longest()
        try:
            while len(self.ended) < total and time.monotonic() < deadline:
                self._start_some()
                if self._look():
                    tell(len(self.ended))
                elif not any(step.process is None or step.runs for step in self.steps):
                    if not self._start_apart():
                        break
                else:
                    time.sleep(pause)
            self._wait_for_files()
            self._account()
            tell(len(self.ended))
        finally:
            self._stop()
        return self.ended

    # -- what is started

    def _runner(self, line: int | None = None) -> list[str]:
        command = [self.way.python, "-I", str(self.folder / "runner.py"), str(self.folder)]
        return command if line is None else [*command, str(line)]

    def _words(self, nodes: int, hosts: str) -> list[str]:
        return [*step_words(self.way.launcher, nodes, hosts, self.way.group), *self.way.words]

    def _apart(self, number: int) -> _Step:
        """Return the process that starts the runner of one node."""
        node, runner = self.orders[number].node, self._runner(number)
        if self.way.launcher == "srun":
            return self._step([*self._words(1, node), *runner], [number])
        # a terminal, so that the runner is told when the connection breaks
        return self._step(["ssh", *SSH, *self.way.words, "-tt", "--", node, shlex.join(runner)], [number])

    def _step(self, command: list[str], orders: list[int]) -> _Step:
        return _Step(command, orders, self.folder / f"log.{orders[0]}.{len(orders)}")

    def _start_some(self) -> None:
        room = MOST_APART - sum(step.runs for step in self.steps)
        for step in [step for step in self.steps if step.process is None][: max(0, room)]:
            with step.log.open("wb") as log:
                step.process = subprocess.Popen(
                    self.way.tied(step.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.way.environ,
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others
                )

    def _start_apart(self) -> bool:
        """Start what is left node by node, where srun ended all of them because of one."""
        refused = [
            step
            for step in self.steps
            if len(step.orders) > 1
            and one_node_was_refused(self.way.launcher, len(step.orders), _text(step.log))
        ]
        for step in refused:
            self.steps.remove(step)
            self.steps += [self._apart(number) for number in step.orders if self._left(number)]
        return bool(refused)

    # -- what became of it

    def _left(self, number: int) -> list[int]:
        return [run.number for run in self.orders[number].runs if run.number not in self.ended]

    def _look(self) -> bool:
        """Read what has been noted since the last look; tell whether there was anything."""
        before = len(self.ended)
        with os.scandir(self.folder) as files:
            names = [file.name for file in files if file.name.endswith(".end")]
        for name in names:
            number = int(name.removesuffix(".end"))
            if number not in self.ended:
                found = msgspec.json.decode((self.folder / name).read_bytes(), type=dict[str, int | bool])
                errors = self.folder / f"{number}.err"
                self.ended[number] = Ended(
                    int(found["code"]), bool(found["late"]), reason_of(_text(errors).encode())
                )
        return len(self.ended) > before

    def _wait_for_files(self) -> None:
        """Wait for what nodes wrote whose runners ended well, where the file system shows it late."""
        deadline = time.monotonic() + APPEAR_SECONDS
        self._look()
        while any(
            step.process and step.process.returncode == 0 and any(map(self._left, step.orders))
            for step in self.steps
        ):
            if time.monotonic() > deadline:
                return
            time.sleep(LOOK_SECONDS[True])
            self._look()

    def _account(self) -> None:
        """Say why commands have no end: the launcher ended, or is still waiting."""
        for step in self.steps:
            if step.has_ended and step.process is not None:
                why = f"{_name(step.command)} ended with {step.process.returncode}"
                if said := reason_of(_text(step.log).encode()):
                    why += f": {said}"
            else:
                why = f"{_name(step.command)} did not end in time"
            for number in step.orders:
                self.ended.update({left: Ended(None, reason=why) for left in self._left(number)})

    def _longest(self) -> float:
        """Return how long everything may take."""
        waves = [order.seconds * -(-len(order.runs) // max(1, order.at_once)) for order in self.orders]
        turns = -(-len(self.steps) // MOST_APART)
        return turns * (max(waves, default=0.0) + LATE_SECONDS)

    def _stop(self) -> None:
        """End what runs: runners end their commands, and are killed where they do not."""
        # srun passes SIGUSR1 on; at SIGTERM it kills at once, and nobody ends what runners have started
        number = signal.SIGUSR1 if self.way.launcher == "srun" else signal.SIGTERM
        processes = [step.process for step in self.steps if step.process]
        if len(self.ended) == sum(len(order.runs) for order in self.orders):
            _wait(processes, LOOK_SECONDS[False])  # they are about to end by themselves
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
        _wait(processes, LEAVE_SECONDS)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        _wait(processes, 1.0)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _name(command: Sequence[str]) -> str:
    """Return what a person calls the program that started a runner."""
    return command[0] if command[0] in {"srun", "mpiexec", "ssh"} else "the runner"


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
