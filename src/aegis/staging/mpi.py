"""Staging over MPI: its program compiled once, started on every node, and what it says or why it died."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct, structs

from aegis.errors import AegisError, SiteError
from aegis.files import write_atomically
from aegis.staging.events import Done, NodeResult, Progress, read_event
from aegis.staging.listen import at_first, spoken
from aegis.staging.listing import encode
from aegis.staging.node.items import short
from aegis.step import step_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item
    from aegis.staging.stage import Action, Tell

SOURCE: Final = Path(__file__).with_name("bcast.c")
FLAGS: Final = ("-std=gnu11", "-O2", "-pthread")
COMPILE_SECONDS: Final = 300.0
ASK_SECONDS: Final = 30.0
END_SECONDS: Final = 3.0  # for its ranks to end by themselves
LEAVE_SECONDS: Final = 10.0  # for a launcher to end its ranks
SHOWN: Final = 12  # lines of a failed command
GIVEN_UP: Final = b"bcast: "  # how a line begins by which a rank ends all: a node hangs, or was cut off
MODULE_HINT: Final = (
    "load the site's MPI module, name a program that is compiled already, or take --stager tcp"
)
# How launchers tell of a rank that died: Hydra, PALS, srun
DEATH: Final = re.compile(
    rb"(RUNNING AT \S+|EXIT (CODE|STRING).*|.*died from signal.*|.*task \d+.*(Killed|Terminated|Exited|Aborted).*"
    rb"|.*KILLED BY SIGNAL.*|Fatal error in.*|bcast: .*)"
)


class Compiler(Struct, frozen=True):
    """The MPI compiler of a site."""

    path: str
    version: str  # what it says of itself, and of the MPI that it compiles for


class MpiLauncher(Struct, frozen=True, kw_only=True):
    """The site's way to start an MPI program on every node."""

    kind: Literal["mpiexec", "srun"]
    words: tuple[str, ...] = ()  # the site's own, after the launcher's
    het_group: str = ""  # srun: which component of the job


# ------------------------------------------------------------------------------------- the program


def program(*, environ: Mapping[str, str], prebuilt: str | None = None, cache: Path | None = None) -> Path:
    """Return the compiled program, compiling it if this source and this compiler have none in the cache yet.

    Args:
        environ: where `mpicc` is looked for; `MPICC` names another.
        prebuilt: a compiled program, for sites that forbid to compile.
        cache: a folder that all nodes see; None: the user's.

    Raises:
        SiteError: there is no compiler, it fails, or what is prebuilt cannot be run.
    """
    if prebuilt is not None:
        if not (os.path.isfile(prebuilt) and os.access(prebuilt, os.X_OK)):
            raise SiteError(
                f"{prebuilt} is no program that can be run", hint="compile aegis/staging/bcast.c there"
            )
        return Path(prebuilt).absolute()
    compiler = find_compiler(environ)
    folder = (cache or _default_cache(environ)) / f"bcast-{cache_key(SOURCE.read_bytes(), compiler)}"
    built = folder / "bcast"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not built.is_file():
                _compile(compiler, built, environ)
    except OSError as error:
        raise SiteError(
            f"the program for staging cannot be compiled into {folder}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder that all nodes see",
        ) from None
    return built


def find_compiler(environ: Mapping[str, str]) -> Compiler:
    """Return the MPI compiler that `MPICC` names, or `mpicc`.

    Raises:
        SiteError: there is none, or it does not answer.
    """
    name = environ.get("MPICC") or "mpicc"
    path = shutil.which(name, path=environ.get("PATH"))
    if path is None:
        raise SiteError(f"no MPI compiler: {name} is not on PATH", hint=MODULE_HINT)
    words = [answer([path, option], environ) for option in ("--version", "-show")]
    if not any(words):
        raise SiteError(f"{path} does not answer to --version", hint=MODULE_HINT)
    return Compiler(path, "\n".join(words))


def cache_key(source: bytes, compiler: Compiler) -> str:
    """Return what names a compiled program: it changes with its source, its compiler and the MPI behind that."""
    digest = hashlib.blake2b(source, digest_size=10)
    digest.update(os.fsencode("\0".join((compiler.path, compiler.version, *FLAGS, os.uname().machine))))
    return digest.hexdigest()


def _default_cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache") / "aegis"


def answer(argv: list[str], environ: Mapping[str, str]) -> str:
    """Return what a short question to a program of the site prints; "" where it fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if not done.returncode else ""


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep others out: many jobs may begin at once after an update."""
    with file.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(compiler: Compiler, built: Path, environ: Mapping[str, str]) -> None:
    temporary = built.with_name(f".bcast.{os.getpid()}.{os.urandom(4).hex()}")
    argv = [compiler.path, *FLAGS, str(SOURCE), "-o", str(temporary)]
    try:
        done = subprocess.run(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
        if done.returncode:
            said = _last_lines(done.stderr or done.stdout)
            raise SiteError(
                f"{compiler.path} cannot compile the program for staging:\n{said}", hint=MODULE_HINT
            )
        temporary.replace(built)
    except subprocess.TimeoutExpired:
        raise SiteError(
            f"{compiler.path} did not end within {COMPILE_SECONDS:.0f} s", hint=MODULE_HINT
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- its processes


def command(launcher: MpiLauncher, nodes: int, nodes_file: Path, argv: Sequence[str]) -> list[str]:
    """Return the argv that runs a program once on each node; the file has a node's name on every line."""
    words = step_words(launcher.kind, nodes, str(nodes_file), launcher.het_group, survives=False)
    return [*words, *launcher.words, *argv]


def arguments(
    built: Path,
    list_file: Path,
    action: Action = "stage",
    *,
    ranks: int | None = None,
    readers: int | None = None,
    window: int | None = None,
) -> list[str]:
    """Return the argv of the program itself; with another number of ranks it refuses to begin."""
    argv = [str(built), str(list_file)]
    if ranks is not None:
        argv += ["--ranks", str(ranks)]
    if readers is not None:
        argv += ["--readers", str(readers)]
    if window is not None:
        argv += ["--window", str(window)]
    return argv if action == "stage" else [*argv, f"--{action}"]


class OverMpi(Struct, frozen=True, kw_only=True):
    """The stager that is an MPI program, started on every node by the site's launcher."""

    shared: Path  # a folder that all nodes see
    launcher: MpiLauncher
    environ: dict[str, str]
    program: Path  # see `program`
    readers: int | None = None  # nodes that read; None: as many as help
    window: int | None = None  # pieces that a lane has under way
    tied: Callable[[list[str]], list[str]] = list  # makes a command end with this process

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Start the program on all nodes and tell what it prints.

        Raises:
            SiteError: the launcher is missing, or the files for it cannot be written.
            AegisError: it ended before all was decided: a rank died, or a node was lost.
        """
        if shutil.which(self.launcher.kind, path=self.environ.get("PATH")) is None:
            raise SiteError(f"{self.launcher.kind} is not on PATH", hint=MODULE_HINT)
        try:
            self.shared.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".staging-", dir=self.shared.absolute()) as folder:
                self._run(Path(folder), items, hosts, action, tell)
        except OSError as error:
            raise SiteError(
                f"staging over MPI cannot be started: {error.filename or self.shared}: {error.strerror}",
                hint="name a folder that all nodes see: --log-dir",
            ) from None

    def _run(
        self, folder: Path, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell
    ) -> None:
        list_file, nodes_file, errors = folder / "list", folder / "nodes", folder / "errors"
        write_atomically(list_file, encode(items))
        write_atomically(nodes_file, "".join(f"{host}\n" for host in hosts))
        argv = arguments(
            self.program, list_file, action, ranks=len(hosts), readers=self.readers, window=self.window
        )
        argv = command(self.launcher, len(hosts), nodes_file, argv)
        names = {short(host): host for host in hosts}
        finished = False
        with errors.open("wb") as log:
            process = subprocess.Popen(
                self.tied(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environ,
            )
            said: list[bytes] = []  # by the launcher or a library, on standard output
            so_far: Event = at_first(items, hosts)
            try:
                for line in spoken(process.stdout):
                    event = read_event(line) if line else so_far
                    if isinstance(event, NodeResult):  # nodes name themselves with or without their domain
                        event = structs.replace(event, host=names.get(short(event.host), event.host))
                    elif isinstance(event, Progress):
                        so_far = event
                    if event is not None:
                        tell(event)
                    finished |= isinstance(event, Done)
                    said += [line] if event is None else []
                    # what was not decided when a rank gave up will not be; libraries may hang in their end
                    if finished or line.startswith(GIVEN_UP):
                        break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
            finally:
                _end(process)
        if not finished:
            raise AegisError(
                death(process.returncode, errors.read_bytes() + b"\n".join(said)),
                hint="stage again: it goes on where it ended",
            )


def death(code: int, said: bytes) -> str:
    """Return why the program ended before its time, from what its launcher said."""
    found = list(dict.fromkeys(match.group(1).strip() for match in DEATH.finditer(said)))
    words = b"; ".join(found[:SHOWN]) if found else _last_lines(said).encode()
    told = words.decode(errors="replace") or "without a word"
    return f"staging over MPI ended with {code} before all nodes were done: {told}"


def _last_lines(output: bytes) -> str:
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-SHOWN:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that still runs, and with it its ranks."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
