"""What every job script has in common: go to the directory, set up, launch the deployments that stand in the script."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis import __version__
from aegis.schedulers.base import JOB_VARIABLE, RUN_DIR_VARIABLE

if TYPE_CHECKING:
    from aegis.schedulers.base import Component, JobRequest

# The first signal ends the servers; each launch writes why and what is left, then the job ends with the first bad code.
WAIT = """trap 'kill -TERM $(jobs -p) 2>/dev/null' TERM INT
code=0
for job in $(jobs -p); do
  wait "$job"
  this=$?
  while kill -0 "$job" 2>/dev/null; do wait "$job"; this=$?; done  # a signal ended the wait, not the job
  [ "$code" -ne 0 ] || code=$this
done
exit "$code\""""


class JobShell(Struct, frozen=True, kw_only=True):
    """How a scheduler's job sees itself, as shell text."""

    scheme: str  # of the handle: slurm, pbs
    directives: tuple[str, ...] = ()  # whole lines
    job_id: str  # expression for the id in the handle
    folder_id: str  # the same, as it stands in file names
    # Per component, the lines that narrow the allocation down to its own nodes; none where there is one component.
    narrowing: tuple[tuple[str, ...], ...] = ()


def script(request: JobRequest, shell: JobShell | None = None) -> str:
    """Return the job script; every value in it is quoted. Without a shell the job knows its handle already (local)."""
    lines = [
        "#!/bin/bash -l" if request.setup or shell else "#!/bin/bash",
        *(shell.directives if shell else ()),
        f"# Job {_comment(request.name)}, written by aegis {__version__}.",
        "# The deployment below is resolved: no file, flag or AEGIS_* variable changes it any more.",
        "",
        f"cd -- {shlex.quote(request.work_dir)} || exit 3",
        *request.setup,
    ]
    if len(request.components) == 1:
        (component,) = request.components
        if shell:
            lines += _own_place(component, shell, "")
        return "\n".join([*lines, *_launch(request.python, component), ""])
    for number, component in enumerate(request.components):
        lines += ["", "("]
        if shell:
            lines += [*_own_place(component, shell, f"+{number}"), *shell.narrowing[number]]
        lines += [*_launch(request.python, component), ") &"]
    return "\n".join([*lines, "", WAIT, ""])


def _own_place(component: Component, shell: JobShell, suffix: str) -> list[str]:
    """Return the lines that name the job, make its run directory and turn the output there."""
    place = shlex.quote(f"{component.folder}/{component.stem}.")
    stem = shlex.quote(f"{component.stem}.")
    return [
        f'export {JOB_VARIABLE}="{shell.scheme}://{shell.job_id}{suffix}"',
        f'export {RUN_DIR_VARIABLE}={place}"{shell.folder_id}{suffix}"',
        f'mkdir -p -- "${RUN_DIR_VARIABLE}" || exit 3',
        f'exec >>"${RUN_DIR_VARIABLE}"/{stem}"{shell.folder_id}{suffix}.out" 2>>"${RUN_DIR_VARIABLE}"/{stem}"{shell.folder_id}{suffix}.err" || exit 3',
    ]


def _launch(python: str, component: Component) -> list[str]:
    end = _delimiter(component.deployment)
    return [
        # -P: a folder `aegis` or a file `types.py` in the working directory is not imported
        f"exec {shlex.quote(python)} -P -m aegis launch --config - --no-environment <<'{end}'",
        component.deployment.rstrip("\n"),
        end,
    ]


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _delimiter(text: str) -> str:
    """Return a line that the text does not have."""
    lines = set(text.splitlines())
    end = "AEGIS_DEPLOYMENT"
    while end in lines:
        end += "_"
    return end
