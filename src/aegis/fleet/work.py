"""What a job does with its servers, where it is more than serving: its `aegis map`, a process beside the head.

It starts with the registry, before any server: inputs that are wrong end the job in its first seconds.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.decoding import from_json
from aegis.errors import AegisError, ConfigError, PartialSuccess
from aegis.fleet.services import tied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO

    from aegis.runs import RunDir

STOP_SECONDS: Final = 20.0  # for what is under way, when the servers are to end: less than Slurm's KillWait
FOR_EVER: Final = "1e9"  # seconds
TIME: Final = re.compile(r"^\d\d:\d\d:\d\d ")
SAID: Final = re.compile(r"(?:error:|      ) (.*)")  # as the command line writes errors, of one line or more


class Summary(Struct):
    """What is read of the JSON that `aegis map` prints at its end."""

    rows: int = 0
    done: int = 0
    failed: int = 0
    left: int = 0


class Work:
    """One `aegis map` on the servers of this launch.

    Args:
        words: its arguments.
        run: the run directory; `map.json` there gets the summary.
        environ: of the process, with the servers' key.
        say: gets each line that it writes.
    """

    def __init__(
        self, words: list[str], run: RunDir, environ: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._words, self._run, self._environ, self._say = words, run, environ, say
        self._summary = run.path / "map.json"
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None
        self._error: list[str] = []

    def start(self, registry_url: str) -> None:
        """Start it.

        Raises:
            OSError: its summary cannot be written.
        """
        # whether servers still come is for the head to say
        command = [sys.executable, "-P", "-m", "aegis", "map", "--patience", FOR_EVER, *self._words, "--json"]
        command += ["--registry-url", registry_url, "--token-file", str(self._run.token)]
        with self._summary.open("wb") as out:
            self._process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                env=self._environ,
                start_new_session=True,
                text=True,
                errors="replace",
            )
        self._reading = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reading.start()

    def ended(self) -> tuple[str, AegisError | None] | None:
        """Return what became of it, and the error that this is for the job; None while it works."""
        if self._process is None or self._process.poll() is None:
            return None
        self._listen_to_the_end()
        code = self._process.returncode
        summary = self._read_summary()
        if code == 0:
            return f"all {summary.rows:,} are done", None
        why = "\n".join(self._error) or f"aegis map ended with exit code {code}"
        kind = {PartialSuccess.exit_code: PartialSuccess, ConfigError.exit_code: ConfigError}.get(
            code, AegisError
        )
        return why, kind(why)

    def stop(self) -> None:
        """Let it bring home what is under way; then end it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listen_to_the_end()

    def _listen_to_the_end(self) -> None:
        if self._reading is not None:
            self._reading.join(STOP_SECONDS)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                text = TIME.sub("", line.rstrip("\n"))  # whoever says it adds the time
                if found := SAID.fullmatch(text):
                    self._error.append(found[1])
                self._say(text)

    def _read_summary(self) -> Summary:
        try:
            return from_json(self._summary.read_bytes(), Summary)
        except (OSError, msgspec.DecodeError):
            return Summary()


def words_of(text: str) -> list[str]:
    """Return the arguments that a deployment has for `aegis map`.

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"map: {error}", hint="quote it as in a shell") from None
