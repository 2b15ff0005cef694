"""A Slurm of several nodes on this machine, and the ways for a test to use it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.runs import slug
from aegis.schedulers.slurm import Slurm
from aegis.schedulers.transport import TIMEOUT, Done, Here
from tests.lab.conftest import wait_until
from tests.schedulers.job_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from aegis.schedulers.base import Component, JobStatus, Submission

SCRIPT = Path(__file__).with_name("slurm-lab")
ROOT = Path(__file__).parents[3]
JANITOR = 'read -r _; "$1" down; rm -rf -- "$SLURM_LAB_DIR"'  # when whoever holds its input is gone, in whatever way
STUB = "#!/bin/bash\n. /dev/stdin\n"  # stands for Python: runs the deployment as shell code
SLEEP = "trap exit TERM; touch began.$SLURM_JOB_ID; sleep 600 & wait"
USERS = ("alice", "bob", "root")
READY = 60.0  # seconds until nodes are idle again
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")


def missing() -> str:
    """Return what keeps the lab from being started here, if anything does."""
    done = subprocess.run(
        [SCRIPT, "missing"],
        env={**os.environ, "SLURM_LAB_DIR": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


class SlurmLab:
    """Hosts login, node1 to node4 (two partitions, a40 and a100, of 4 GPUs a node; `all` has all four); users alice and bob."""

    def __init__(
        self, nodes: str = "a40:2:a40:4 a100:2:a100:4", conf: str = "", *, accounting: bool = True
    ) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: sockets lie in it
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
        self.accounting = accounting and all(shutil.which(program, path=places) for program in ACCOUNTING)
        self.names = [
            f"node{number + 1}" for number in range(sum(int(p.split(":")[1]) for p in nodes.split()))
        ]
        self.environ = {
            "PATH": places,
            "LANG": "C.UTF-8",
            "SLURM_LAB_DIR": str(self.path),
            "SLURM_LAB_NODES": nodes,
            "SLURM_LAB_OPEN": ":".join(dict.fromkeys((sys.base_prefix, sys.prefix, str(ROOT)))),
            "SLURM_LAB_ACCOUNTING": str(int(self.accounting)),
            "SLURM_LAB_CONF": conf,
        }
        self._janitor = subprocess.Popen(
            ["bash", "-c", JANITOR, "janitor", SCRIPT],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._crashed: set[str] = set()

    def __enter__(self) -> Self:
        try:
            self._verb("up")
        except BaseException:
            self._janitor.communicate()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._janitor.communicate()

    # -- hosts

    def enter(self, host: str = "login", user: str = "root") -> list[str]:
        """Return what begins a command that runs on a host as a user."""
        return [
            "env",
            *(f"{name}={value}" for name, value in self.environ.items()),
            str(SCRIPT),
            "exec",
            host,
            user,
        ]

    def run(
        self,
        *argv: object,
        user: str = "root",
        host: str = "login",
        environ: Mapping[str, str] | None = None,
        text: str = "",
        cwd: Path | None = None,
        timeout: float = TIMEOUT,
        code: int | None = 0,
    ) -> Done:
        """Run a command on a host to its end; `code` is what it has to end with."""
        given = {name: value for name, value in (environ or {}).items() if value}
        words = ["env", *(f"{name}={value}" for name, value in given.items()), *map(str, argv)]
        done = subprocess.run(
            [SCRIPT, "exec", host, user, *words],
            env=self.environ,
            input=text,
            cwd=cwd or self.path,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
        assert code is None or done.returncode == code, f"{argv}: exit {done.returncode}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr)

    def crash(self, node: str, *, noticed: bool = False) -> None:
        """Cut a node's power; Slurm notices after SlurmdTimeout (15 s) and some, or is told at once."""
        self._crashed.add(node)
        self._verb("crash", node)
        if noticed:
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def boot(self, node: str) -> None:
        """Start a crashed node again."""
        self._verb("boot", node)
        self._crashed.discard(node)

    @contextlib.contextmanager
    def without_controller(self) -> Iterator[None]:
        """Stop slurmctld for the length of a block."""
        self._verb("controller", "stop")
        try:
            yield
        finally:
            self._verb("controller", "start")

    def expire(self, job: str) -> None:
        """Let a running job's walltime end now; Slurm looks every 30 s."""
        self._update(job, "EndTime=now")

    def begin(self, job: str, at: str = "now") -> None:
        """Let a job that waits for its time begin."""
        self._update(job, f"StartTime={at}")

    def _update(self, job: str, field: str) -> None:
        """Change a job as soon as Slurm takes it: not in its first second, nor while accounting is told of it."""

        def accepted() -> bool:
            return self.run("scontrol", "update", f"jobid={job}", field, code=None).code == 0

        wait_until(accepted, f"Slurm takes {field} of job {job}")

    def settle(self) -> None:
        """End what a test has left, and have all nodes idle."""
        for node in sorted(self._crashed):
            self.boot(node)
        for user in USERS:
            self.run("scancel", f"--user={user}")
        wait_until(self._all_idle, "all nodes are idle", READY)

    def _all_idle(self) -> bool:
        nodes = self.run("sinfo", "-h", "-N", "-p", "all", "-o", "%N %t").out.split("\n")
        for name, state in (line.split() for line in nodes if line):
            if state.rstrip("*") in {"down", "drain", "drng"} and name not in self._crashed:
                self.run("scontrol", "update", f"nodename={name}", "state=resume", code=None)
        return sum(line.endswith(" idle") for line in nodes) == len(self.names)

    def _verb(self, *words: str) -> None:
        done = subprocess.run(
            [SCRIPT, *words], env=self.environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"


class Login(Here):
    """The login host as a transport: commands and files are those of one user there; each command is noted."""

    name = "login"

    def __init__(self, lab: SlurmLab, user: str, home: Path) -> None:
        super().__init__({})
        self.variables = {"HOME": str(home)}  # of its environment
        self.lab = lab
        self.user = user
        self.asked: list[list[str]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Done:
        self.asked.append(list(argv))
        inside = Here(self.lab.environ)
        words = {**self.variables, **(environ or {})}
        unset = [word for name, value in words.items() if not value for word in ("-u", name)]
        given = [f"{name}={value}" for name, value in words.items() if value]
        return inside.run(
            [str(SCRIPT), "exec", "login", self.user, "env", *unset, *given, *argv],
            text=text,
            timeout=timeout,
        )

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        script = 'mkdir -p -- "${1%/*}" && umask 077 && cat >"$1.new" && chmod "$2" "$1.new" && mv -- "$1.new" "$1"'
        done = self.run(["bash", "-c", script, "write", path, f"{mode:o}"], text=content)
        if done.code:
            raise OSError(done.err)


class User:
    """A user of the lab in a home of this test alone."""

    def __init__(self, lab: SlurmLab, name: str, home: Path) -> None:
        self.lab = lab
        self.name = name
        self.home = home
        self.work = home / "work"
        self.logs = home / "logs"
        self.environ: dict[str, str] = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        self.transport = Login(lab, name, home)
        self.slurm = Slurm(self.transport, self.environ)
        self.run("mkdir", "-p", self.work, cwd=lab.path)
        self._stub = home / "python"
        self.transport.write(str(self._stub), STUB, 0o755)

    def run(self, *argv: object, environ: Mapping[str, str] | None = None, **how: Any) -> Done:
        """Run a command on the login host to its end, in the user's working directory."""
        words = {**self.environ, **(environ or {})}
        return self.lab.run(*argv, **{"user": self.name, "cwd": self.work, **how}, environ=words)

    def aegis(self, *args: object, **how: Any) -> Done:
        """Run the real `aegis` on the login host."""
        done = self.run(sys.executable, "-P", "-m", "aegis", *args, **how)
        assert "Traceback" not in done.err, done.err
        return done

    def component(self, code: str = SLEEP, model: str = "org/model-7B", **resources: Any) -> Component:
        """Return a component whose head runs shell code in place of `aegis launch`."""
        asked = {"queue": "all", "walltime": "00:10:00", "memory": "1G", **resources}
        folder = str(self.logs / "model")
        return component(model, folder=folder, stem=slug(model), deployment=f"{code}\n", resources=asked)

    def submit(self, *components: Component, name: str = "test", **secrets: str) -> Submission:
        """Submit a job; of one component that sleeps by default."""
        job = request(
            *(components or (self.component(),)), name=name, work_dir=str(self.work), python=str(self._stub)
        )
        return self.slurm.submit(job, self.slurm.render(job), secrets)

    def status(self, handle: str) -> JobStatus | None:
        """Return what Slurm says of a job."""
        return self.slurm.query([handle]).get(handle)

    def wait_for(self, handle: str, state: str, words: str = "", seconds: float = 30.0) -> JobStatus:
        """Return the job's status when it has a state, and a reason with some words in it."""

        def seen() -> JobStatus | None:
            found = self.status(handle)
            return found if found and found.state == state and words in found.reason else None

        try:
            reached: JobStatus = wait_until(seen, f"{handle} {state} {words}", seconds)
        except BaseException:
            print(self.status(handle), file=sys.stderr)  # noqa: T201 - what it is instead
            raise
        return reached

    def wait_begun(self, handle: str) -> None:
        """Return when the head of a job that sleeps has begun."""
        wait_until((self.work / f"began.{handle.partition('://')[2]}").exists, f"{handle} has begun")
