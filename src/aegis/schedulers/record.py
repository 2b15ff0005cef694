"""What a submission leaves behind, so that the job is found again: run directory, script, manifest, index.

The job itself may be faster than whoever submitted it. So nothing that is there is replaced: the job writes its manifest
whole, and a manifest of the submission lands only where there is none.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import AegisError, SiteError
from aegis.files import PRIVATE
from aegis.runs import Manifest, endpoints_path, index_link
from aegis.schedulers.base import SECRETS_VARIABLE
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.schedulers.base import Component, JobRequest
    from aegis.schedulers.transport import Transport

# Of each component: its run directory, its link in the index, and how long script and manifest are, which come on standard
# input. `ln` without -f: made whole under another name, then given its own unless somebody was faster.
RECORD = r"""put() {
  (umask 077 && head -c "$3" >"$1.new") && chmod "$2" -- "$1.new" || return
  ln -- "$1.new" "$1" 2>/dev/null || true
  rm -f -- "$1.new"
}
while [ "$#" -gt 0 ]; do
  stem=$1/${1##*/}
  mkdir -p -- "$1" "${2%/*}" && ln -sfn -- "$1" "$2" && put "$stem.sh" 755 "$3" && put "$stem.json" 644 "$4" || exit
  shift 4
done"""


def prepare(
    request: JobRequest, folder: str, values: Mapping[str, str], transport: Transport
) -> dict[str, str]:
    """Make the folder that a scheduler itself writes to, and leave the secrets; return the variable that names their file.

    Raises:
        AegisError: one of them cannot be written.
    """
    done = transport.run(["mkdir", "-p", "--", folder])
    if done.code:
        raise AegisError(
            f"the log directory cannot be made: {done.err.strip()}", hint="choose another with --log-dir"
        )
    try:
        return leave_secrets(request, values, transport)
    except OSError as error:
        raise AegisError(
            f"the secrets of the job cannot be written: {error.strerror or error}",
            hint="choose another directory with --log-dir",
        ) from None


def leave_secrets(request: JobRequest, values: Mapping[str, str], transport: Transport) -> dict[str, str]:
    """Write the secrets where only their owner and his jobs can read them; return the variable that names the file.

    Raises:
        OSError: it cannot be written.
    """
    if not values:
        return {}
    root = request.components[0].folder.rpartition("/")[0]
    file = f"{root}/.secrets/{os.urandom(8).hex()}"  # the module `secrets` takes 4 ms to load
    transport.write(file, msgspec.json.encode(dict(values)).decode(), PRIVATE)
    return {SECRETS_VARIABLE: file}


def record(
    request: JobRequest,
    script: str,
    handles: Mapping[str, str],
    transport: Transport,
    environ: Mapping[str, str],
    *,
    secrets_file: str | None = None,
) -> list[str]:
    """Make run directories, manifests and index entries of a job that was accepted; return what went wrong.

    The job is there whatever happens here, so nothing of it is an error.

    Args:
        request: the job.
        script: its script.
        handles: per component its handle, and its id in file names.
        transport: where the job's files are.
        environ: where jobs are indexed.
        secrets_file: to be removed when the job has ended.
    """
    words, files = [], ""
    try:
        home = transport.home()
        for component, (handle, name) in zip(request.components, handles.items(), strict=True):
            folder = f"{component.folder}/{component.stem}.{name}"
            manifest = _manifest(request, component, handle, folder)
            manifest.secrets_file = secrets_file
            text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n"
            words += [
                folder,
                index_link(handle, environ, home),
                *(str(len(each.encode())) for each in (script, text)),
            ]
            files += script + text
        done = transport.run(["bash", "-c", RECORD, "aegis", *words], text=files)
    except SiteError as error:
        return [f"the job is submitted, but cannot be recorded: {error.message}"]
    return [f"the job is submitted, but cannot be recorded: {done.err.strip()}"] if done.code else []


def _manifest(request: JobRequest, component: Component, handle: str, folder: str) -> Manifest:
    resources = component.resources
    return Manifest(
        job=handle,
        name=request.name,
        models=list(component.models),
        run_dir=folder,
        created=time.time(),
        walltime=parse_walltime(resources.walltime) if resources.walltime else None,
        nodes=resources.nodes,
        queue=resources.queue or "",
        endpoints_file=endpoints_path(component.endpoints_file, handle, folder),
        service=request.service,
        predecessor=request.after.job if request.after else None,
    )
