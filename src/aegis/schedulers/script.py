"""What every job script has in common: go to the directory, set up, launch the deployments that stand in the script."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis import __version__
from aegis.schedulers.base import (
    FAILED_STARTS_VARIABLE,
    JOB_VARIABLE,
    PREDECESSOR_VARIABLE,
    RUN_DIR_VARIABLE,
)

if TYPE_CHECKING:
    from aegis.schedulers.base import After, Component, JobRequest

# Several launches: a signal ends their servers, and each writes why and what is left; the job ends with the first bad code.
OWN_VARIABLES = "# shellcheck disable=SC2030,SC2031 # what a component exports is for itself alone"
BEFORE = """launches=() told=  # whatever the user's environment has under these names
trap told=1 TERM INT  # passed on when all are launched"""
# A wait that a signal cut short says nothing of the launch, and of two signals in a row the second may cut short the next wait
# without its trap being run again. So the codes are asked for when every launch has ended and no signal counts any more.
AFTER = """trap 'kill -TERM $(jobs -pr) 2>/dev/null' TERM INT
[ -z "$told" ] || kill -TERM $$
while [ -n "$(jobs -pr)" ]; do  # a signal ends the wait, not the launches
  wait "${launches[@]}"
done
trap '' TERM INT
wait "${launches[@]}"  # takes with it what a signal of the last moment left behind
code=0
for job in "${launches[@]}"; do
  wait "$job"
  this=$?
  [ "$code" -ne 0 ] || code=$this
done
exit "$code\""""


class JobShell(Struct, frozen=True, kw_only=True):
    """How a scheduler's job sees itself, as shell text."""

    scheme: str  # of the handle: slurm, pbs
    directives: tuple[str, ...] = ()  # whole lines
    first: tuple[str, ...] = ()  # what the two expressions below need
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
        *([OWN_VARIABLES] if len(request.components) > 1 else ()),
        "",
        f"cd -- {shlex.quote(request.work_dir)} || exit 3",
        *(shell.first if shell else ()),
        *request.setup,
        *_chain(request.after),
    ]
    if len(request.components) == 1:
        (component,) = request.components
        if shell:
            lines += _own_place(component, shell, "")
        return "\n".join([*lines, *_launch(request.python, component), ""])
    lines += ["", BEFORE]
    for number, component in enumerate(request.components):
        lines += ["", "("]
        if shell:
            lines += [*_own_place(component, shell, f"+{number}"), *shell.narrowing[number]]
        lines += [*_launch(request.python, component), ") &", 'launches+=("$!")']
    return "\n".join([*lines, "", AFTER, ""])


def _chain(after: After | None) -> list[str]:
    """Return the lines that tell a job whom it takes over from."""
    if after is None:
        return []
    lines = [f"export {PREDECESSOR_VARIABLE}={shlex.quote(after.job)}"]
    if after.failed_starts:
        lines.append(f"export {FAILED_STARTS_VARIABLE}={after.failed_starts}")
    return lines


def _own_place(component: Component, shell: JobShell, suffix: str) -> list[str]:
    """Return the lines that name the job, make its run directory and turn the output there."""
    place = shlex.quote(f"{component.folder}/{component.stem}.")
    log = f'"${RUN_DIR_VARIABLE}/${{{RUN_DIR_VARIABLE}##*/}}'
    return [
        f'export {JOB_VARIABLE}="{shell.scheme}://{shell.job_id}{suffix}"',
        f'export {RUN_DIR_VARIABLE}={place}"{shell.folder_id}{suffix}"',
        f'mkdir -p -- "${RUN_DIR_VARIABLE}" || exit 3',
        f'exec >>{log}.out" 2>>{log}.err" || exit 3',
    ]


def _launch(python: str, component: Component) -> list[str]:
    # -P: a folder `aegis` or a file `types.py` in the working directory is not imported
    launch = f"exec {shlex.quote(python)} -P -m aegis launch --config - --no-environment"
    if not component.profile:
        return _here_document(launch, component.deployment, "AEGIS_DEPLOYMENT")
    file = f'"${RUN_DIR_VARIABLE}"/{shlex.quote(f"{component.profile_name}.yaml")}'
    return [
        *_here_document(f"cat >{file} || exit 3", component.profile, "AEGIS_PLATFORM"),
        *_here_document(f"{launch} --platform {file}", component.deployment, "AEGIS_DEPLOYMENT"),
    ]


def _here_document(command: str, text: str, end: str) -> list[str]:
    """Return a command with a text as its input; the text's end is a line that it does not have."""
    lines = set(text.splitlines())
    while end in lines:
        end += "_"
    before, separator, after = command.partition(" || ")
    return [f"{before} <<'{end}'{separator}{after}", text.rstrip("\n"), end]


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
