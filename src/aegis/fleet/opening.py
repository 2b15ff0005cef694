"""The run directory of a launch: found or made, with a manifest, and the logs that are told of in messages."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import AegisError, NotFoundError
from aegis.fleet.inside import handle_of
from aegis.processes import start_of
from aegis.runs import Manifest, RunDir, endpoints_path, register
from aegis.schedulers.base import (
    JOB_VARIABLE,
    PREDECESSOR_VARIABLE,
    RUN_DIR_VARIABLE,
    SECRETS_VARIABLE,
)
from aegis.schedulers.local import new_handle
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.placement import Placement
    from aegis.spec.deployment import Deployment
    from aegis.spec.platform import Platform


def open_run(
    deployment: Deployment,
    platform: Platform,
    placement: Placement,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> tuple[RunDir, Manifest]:
    """Return the run directory of this job, and its manifest: both may be there, from the submission or an earlier run.

    Raises:
        AegisError: it cannot be written.
    """
    handle = environ.get(JOB_VARIABLE) or handle_of(environ) or new_handle()
    given = environ.get(RUN_DIR_VARIABLE)
    models = [entry.name for entry in deployment.models]
    if given:
        run = RunDir.make(Path(given))
    else:
        run = RunDir.create(deployment.log_dir, models[0], handle.partition("://")[2])
    manifest = Manifest(
        job=handle,
        name=deployment.name or models[0],
        models=models,
        run_dir=str(run.path),
        created=time.time(),
        queue=deployment.queue or "",
        secrets_file=environ.get(SECRETS_VARIABLE),
        service=deployment.service,
        predecessor=environ.get(PREDECESSOR_VARIABLE) or None,
    )
    with contextlib.suppress(NotFoundError):  # the job may be faster than whoever submitted it
        before = run.read_manifest()
        manifest.name, manifest.created, manifest.restarts = before.name, before.created, before.restarts
        manifest.successor = before.successor
        if before.state != "PENDING":  # put back into the queue, and started again
            manifest.restarts += 1
            run.journal.unlink(missing_ok=True)  # nothing of what it lists lives
    manifest.state = "LAUNCHING"
    manifest.pid, manifest.pid_started = os.getpid(), start_of(os.getpid())
    manifest.host = os.uname().nodename
    manifest.nodes, manifest.instances = placement.nodes, len(placement.instances)
    manifest.platform = platform.name
    manifest.walltime = parse_walltime(deployment.walltime) if deployment.walltime else None
    manifest.endpoints_file = endpoints_path(deployment.endpoints_file, handle, str(run.path))
    manifest.deployment = msgspec.to_builtins(deployment)
    try:
        run.write_manifest(manifest)
    except OSError as error:
        if not given:
            run.remove()
        raise AegisError(
            f"the run directory cannot be written: {run.path}: {error.strerror}",
            hint="choose another directory with --log-dir",
        ) from None
    try:
        register(handle, run, environ)
    except OSError as error:  # it serves all the same
        say(f"warning: `aegis status` will not list this job: {error.filename}: {error.strerror}")
    return run, manifest


def last_line(nodes: Path) -> str:
    """Return what the agents, or who starts them, wrote last, to follow a statement."""
    for log in sorted(nodes.glob("*.log")):
        with contextlib.suppress(OSError):
            lines = log.read_text(errors="replace").strip().splitlines()
            if lines and log.stem != "registry":
                return f": {lines[-1]} ({log.name})"
    return ""


def also_into(log: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a `say` that writes a log too: a launch by hand has no scheduler that keeps its output."""

    def both(line: str) -> None:
        say(line)
        with contextlib.suppress(OSError), log.open("a") as stream:
            stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    return both
