"""What a submission leaves behind, so that the job is found again: run directory, script, manifest, index.

The job itself may be faster than whoever submitted it. So nothing that is there is replaced: the job writes its manifest
whole, and a manifest of the submission lands only where there is none.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from aegis.files import PRIVATE
from aegis.runs import Manifest, index_link
from aegis.schedulers.base import SECRETS_VARIABLE
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.schedulers.base import Component, JobRequest
    from aegis.schedulers.transport import Transport

LINK = 'mkdir -p -- "$1" "${3%/*}" && ln -sfn -- "$2" "$3"'
# `ln` without -f: made whole under another name, then given its own unless somebody was faster
PUT = 'umask 077; cat >"$1.new" && chmod "$2" "$1.new" && { ln "$1.new" "$1" 2>/dev/null || true; } && rm -f -- "$1.new"'


def leave_secrets(request: JobRequest, values: Mapping[str, str], transport: Transport) -> dict[str, str]:
    """Write the secrets where only their owner and his jobs can read them; return the variable that names the file.

    Raises:
        OSError: it cannot be written.
    """
    if not values:
        return {}
    root = request.components[0].folder.rpartition("/")[0]
    file = f"{root}/.secrets/{secrets.token_hex(8)}"
    transport.write(file, msgspec.json.encode(dict(values)).decode(), PRIVATE)
    return {SECRETS_VARIABLE: file}


def record(
    request: JobRequest,
    script: str,
    handles: Mapping[str, str],
    transport: Transport,
    environ: Mapping[str, str],
    secrets_file: str | None = None,
) -> list[str]:
    """Make run directories, manifests and index entries of a job that was accepted; return what went wrong.

    Args:
        request: the job.
        script: its script.
        handles: per component its handle, and its id in file names.
        transport: where the job's files are.
        environ: where jobs are indexed.
        secrets_file: to be removed when the job has ended.
    """
    problems = []
    for component, (handle, name) in zip(request.components, handles.items(), strict=True):
        stem = f"{component.stem}.{name}"
        folder = f"{component.folder}/{stem}"
        manifest = _manifest(request, component, handle, folder, transport.name, secrets_file)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n"
        steps = [
            (
                ["bash", "-c", LINK, "aegis", folder, folder, index_link(handle, environ, transport.home())],
                "",
            ),
            (["bash", "-c", PUT, "aegis", f"{folder}/{stem}.sh", "755"], script),
            (["bash", "-c", PUT, "aegis", f"{folder}/{stem}.json", "644"], text),
        ]
        for argv, content in steps:
            done = transport.run(argv, text=content)
            if done.code:
                problems.append(f"the files of {handle} cannot be written: {done.err.strip() or folder}")
                break
    return problems


def _manifest(
    request: JobRequest, component: Component, handle: str, folder: str, host: str, secrets_file: str | None
) -> Manifest:
    resources = component.resources
    return Manifest(
        job=handle,
        name=request.name,
        models=list(component.models),
        run_dir=folder,
        created=time.time(),
        walltime=parse_walltime(resources.walltime) if resources.walltime else None,
        host=host,
        nodes=resources.nodes,
        endpoints_file=component.endpoints_file,
        secrets_file=secrets_file,
    )
