"""A PBS of its own: a server, four nodes played by this machine, its commands in front on PATH, and users of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from aegis.schedulers.base import Component, JobRequest, Resources
from aegis.schedulers.pbs import Pbs
from aegis.schedulers.pbs.queue import decode
from aegis.schedulers.transport import Done, Here
from tests.lab.conftest import MARK, Lab, Process, wait_until

from .standin.wire import Queue, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.schedulers.base import JobStatus

NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")  # names that this machine reaches
QUEUES = {
    "workq": Queue(),
    "debug": Queue(max_nodes=2, max_walltime=3600),
    "small": Queue(from_route_only=True, max_walltime=6 * 3600),
    "stopped": Queue(started=False),
    "disabled": Queue(enabled=False),
    "prod": Queue(route_to=["small"]),
}
COMMANDS = ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes")
COMMAND = """#!{python} -IS
import sys
sys.path.insert(0, {package!r})
from standin.commands import {name}
{name}({spool!r}, sys.argv[1:])
"""
SERVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from standin.server import main; main()"
# The launcher of the site. Each node is a namespace with the node's name; told to end, it ends its tasks.
MPIEXEC = """#!/bin/bash
while [ $# -gt 0 ]; do
  case $1 in
    -n | -ppn) shift 2 ;;
    --hostfile) hosts=$(<"$2"); shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 0' TERM
for node in $hosts; do
  PBS_LAB_NODE=$node unshare --uts bash -c 'hostname "$0"; exec "$@"' "$node" "$@" &
done
wait
"""


def can_rename_hosts() -> bool:
    """Tell whether this user may have a host name of its own: without that one machine cannot play several nodes."""
    unshare = shutil.which("unshare")
    return unshare is not None and not subprocess.run([unshare, "--uts", "true"], check=False).returncode


class PbsLab:
    """A PBS, and a lab whose commands find it."""

    def __init__(self, path: Path) -> None:
        self.lab = Lab(path / "lab", f"{path.name}-{os.getpid()}")
        self.spool = path / "spool"
        self.bin = path / "bin"
        self.home = Path(self.lab.environ["HOME"])
        self.settings = Settings(
            home=str(self.home),
            nodes={node: node for node in NODES},
            queues=dict(QUEUES),
            environ={MARK: self.lab.mark, **self._kept("PYTHONPATH", "LANG", "LC_ALL")},
            rename_hosts=can_rename_hosts(),
        )
        for folder in (self.spool, self.bin):
            folder.mkdir()
        self._install()
        self.environ = self.lab.environ
        self.environ["PATH"] = f"{self.bin}:{self.environ['PATH']}"
        (self.home / ".bash_profile").write_text(f"PATH={self.bin}:$PATH\n")
        self.scheduler = Pbs(Here(self.environ), self.environ)
        self.server: subprocess.Popen[bytes] | None = None

    def _kept(self, *names: str) -> dict[str, str]:
        return {name: self.lab.environ[name] for name in names if name in self.lab.environ}

    def _install(self) -> None:
        package = str(Path(__file__).parent)
        files = {
            name: COMMAND.format(python=sys.executable, package=package, name=name, spool=str(self.spool))
            for name in COMMANDS
        }
        for name, text in {**files, "mpiexec": MPIEXEC}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    # -- the site

    def up(self, **settings: Any) -> None:
        """Start the server, with other settings than it had."""
        for name, value in settings.items():
            setattr(self.settings, name, value)
        self.settings.save(self.spool)
        if self.server is not None:
            self.server.wait(10)
        with (self.spool / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-IS", "-c", SERVER, str(Path(__file__).parent), str(self.spool)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.spool,
                start_new_session=True,
                env={},
            )
        wait_until(lambda: self.run("qstat").code == 0, "the server answers")

    def down(self) -> None:
        """End the server; jobs run on."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            (self.spool / "socket").unlink(missing_ok=True)

    def unreachable(self, *, cut: bool = True) -> None:
        """Cut the link to the server, or mend it."""
        file = self.spool / "unreachable"
        file.touch() if cut else file.unlink()

    def lose(self, node: str) -> None:
        """Switch a node off: everything there dies at once, and a job whose first node it was dies everywhere."""
        (self.spool / "down" / node).touch()
        heads = {
            job["Job_Id"]
            for job in self.jobs().values()
            if job.get("exec_host", "").split("+")[0].partition("/")[0] == node
        }
        for process in self._marked():
            environ = _environ(process.pid)
            if environ.get("PBS_LAB_NODE") == node or environ.get("PBS_JOBID") in heads:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    def restore(self, node: str) -> None:
        """Switch it on again."""
        (self.spool / "down" / node).unlink()

    def profile(self, name: str = "site.yaml", **keys: Any) -> Path:
        """Write a platform whose jobs go to this PBS."""
        values = {
            "scheduler": "pbs",
            "launcher": "mpiexec",
            "node": {"devices": 4, "mask_variable": "CUDA_VISIBLE_DEVICES"},
            "directives": ["-l place=scatter"],
            **keys,
        }
        file = self.lab.work / name
        file.write_text(yaml.safe_dump(values))
        return file

    def count(self, command: str) -> Callable[[], int]:
        """Count from now on how often a command is run."""
        program, counted = self.bin / command, self.spool / f"{command}.runs"
        real = program.rename(self.bin / f"{command}.real")
        program.write_text(f'#!/bin/bash\necho >>{counted}\nexec {real} "$@"\n')
        program.chmod(0o755)
        counted.write_text("")
        return lambda: len(counted.read_text())

    # -- its users

    def run(self, *argv: str, text: str = "", user: str = "", cwd: Path | None = None) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=cwd or self.lab.work,
            env={**self.environ, **({"PBS_LAB_USER": user} if user else {})},
            timeout=30,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def qsub(self, script: str, *argv: str) -> str:
        """Submit a script, and return its id."""
        done = self.run("qsub", *argv, text=script)
        assert done.code == 0, done.err
        return done.out.strip()

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Return the attributes of every job that the server keeps, by id."""
        kept = json.loads((self.spool / "state.json").read_text())["jobs"] if self._kept_any() else []
        ids = [
            f"{each['number']}{'[]' * bool(each['indices'])}.{self.settings.server}"
            for each in kept
            if each["index"] is None
        ]
        if not ids:
            return {}
        done = self.run("qstat", "-x", "-f", "-F", "json", *ids)
        return {name: {**job, "Job_Id": name} for name, job in decode(done.out).get("Jobs", {}).items()}

    def _kept_any(self) -> bool:
        return (self.spool / "state.json").exists()

    def status(self, handle: str) -> JobStatus:
        """Return what the scheduler of Aegis says of a job."""
        return self.scheduler.query([handle])[handle]

    def wait_for(self, handle: str, state: str, reason: str = "", seconds: float = 30.0) -> JobStatus:
        """Return the status when it is as wished."""

        def seen() -> JobStatus | None:
            status = self.status(handle)
            return status if status.state == state and reason in status.reason else None

        found: JobStatus = wait_until(seen, f"{handle} {state} {reason}", seconds)
        return found

    def request(self, script: str = "", *, count: int = 1, **changes: Any) -> JobRequest:
        """Return a job whose `python` is a script of ours."""
        python = self.lab.work / "python"
        python.write_text(f"#!/bin/bash\n{script}\n")
        python.chmod(0o755)
        resources = {"nodes": 1, "walltime": "00:10:00", **changes.pop("resources", {})}
        each = Component(
            models=("org/model-7B",),
            folder=str(self.lab.path / "logs" / "model"),
            stem="model-7B",
            endpoints_file=str(self.lab.work / "endpoints"),
            deployment="model: m\n",
            resources=Resources(**resources),
        )
        values: dict[str, Any] = {
            "name": "model-7B",
            "components": (each,) * count,
            "work_dir": str(self.lab.work),
            "python": str(python),
        }
        return JobRequest(**{**values, **changes})

    def submit(self, script: str = "", *, secrets: dict[str, str] | None = None, **changes: Any) -> str:
        """Submit such a job through Aegis, and return its handle."""
        wanted = self.request(script, **changes)
        return self.scheduler.submit(wanted, self.scheduler.render(wanted), secrets or {}).handle

    # -- the end

    def _marked(self) -> list[Process]:
        """Return every process of a job, its daemon included."""
        every = [Process(int(entry), entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - often
        return [each for each in every if _environ(each.pid).get(MARK) == self.lab.mark and each.is_alive]

    def end_jobs(self) -> None:
        """Delete what the test left."""
        (self.spool / "unreachable").unlink(missing_ok=True)
        if self.server is None or self.server.poll() is not None:
            self.up()
        for node in os.listdir(self.spool / "down"):  # noqa: PTH208 - as above
            self.restore(node)
        left = [name for name, job in self.jobs().items() if job["job_state"] not in "FX"]
        if left:  # all of them known: else this would end the server
            self.run("qdel", *left, user="root")
        wait_until(lambda: all(job["job_state"] in "FX" for job in self.jobs().values()), "all jobs ended")

    def close(self) -> None:
        """End the site; nothing may remain."""
        self.down()
        left = self._marked()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        assert not left, f"left behind: {left}"


def _environ(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in entries)
