"""What a job asks of Slurm, as the `#SBATCH` lines of its script; pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aegis.errors import ConfigError
from aegis.schedulers.base import GROUP_VARIABLE, NOTICE_SECONDS, notice
from aegis.schedulers.script import JobShell
from aegis.schedulers.slurm.queue import LOG
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.schedulers.base import After, Component, JobRequest, Resources

MINUTE = 60
PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What a component that does not say it takes over from the one before it (seen in 22.05).
INHERITED = {
    "walltime": "time limit",
    "account": "account",
    "qos": "QoS",
    "memory": "memory",
    "exclude": "excluded nodes",
}

# Variables that beat the script's own lines, by the options that a script may have.
BEATING = {
    "--account": "SBATCH_ACCOUNT",
    "-A": "SBATCH_ACCOUNT",
    "--constraint": "SBATCH_CONSTRAINT",
    "-C": "SBATCH_CONSTRAINT",
    "--gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "--gres": "SBATCH_GRES",
    "--job-name": "SBATCH_JOB_NAME",
    "--mem": "SBATCH_MEM_PER_NODE",
    "--no-kill": "SBATCH_NO_KILL",
    "--no-requeue": "SBATCH_REQUEUE",
    "--open-mode": "SBATCH_OPEN_MODE",
    "--output": "SBATCH_OUTPUT",
    "--partition": "SBATCH_PARTITION",
    "-p": "SBATCH_PARTITION",
    "--qos": "SBATCH_QOS",
    "-q": "SBATCH_QOS",
    "--requeue": "SBATCH_NO_REQUEUE",
    "--reservation": "SBATCH_RESERVATION",
    "--signal": "SBATCH_SIGNAL",
    "--time": "SBATCH_TIMELIMIT",
    "-t": "SBATCH_TIMELIMIT",
}
# Variables that would make another job of it, or make sbatch wait for its end.
UNWANTED = (
    "SBATCH_ARRAY_INX",
    "SBATCH_ERROR",
    "SBATCH_EXPORT",
    "SBATCH_MEM_PER_CPU",
    "SBATCH_MEM_PER_GPU",
    "SBATCH_WAIT",
)
# Of an allocation that the job is submitted from, all is of no use to it, but how to reach Slurm.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


def job_shell(request: JobRequest) -> JobShell:
    """Return what the script of a job on Slurm has besides the common part.

    Raises:
        ConfigError: sbatch cannot be told a value.
    """
    count = len(request.components)
    return JobShell(
        scheme="slurm",
        directives=tuple(f"#SBATCH {line}" for line in _directives(request)),
        job_id="$SLURM_JOB_ID",
        folder_id="$SLURM_JOB_ID",
        narrowing=tuple(_narrowing(number) for number in range(count)) if count > 1 else (),
    )


def output_folder(request: JobRequest) -> str:
    """Return where Slurm itself writes what a job says before it has a run directory, and why Slurm ended it."""
    return f"{request.components[0].folder}/.slurm"


def foreign(script: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that sbatch must not see, each with no value: they would change the job that the script says."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    given = {re.split(r"[ =]", line, maxsplit=1)[0] for line in lines}
    names = [variable for option, variable in BEATING.items() if option in given]
    outer = [name for name in environ if name.startswith("SLURM_") and name not in KEPT]
    return dict.fromkeys((*UNWANTED, *names, *outer), "")


def _directives(request: JobRequest) -> list[str]:
    first = request.components[0]
    lines = [
        _option("job-name", request.name),
        _option("output", _output(request)),
        "--open-mode=append",  # a requeued job goes on in the same file
        # of several components Slurm would put some back, and they would wait for the others for ever
        "--requeue" if len(request.components) == 1 else "--no-requeue",
        f"--signal=B:TERM@{_notice(first.resources)}",
        *_dependency(request.after),
    ]
    for number, component in enumerate(request.components):
        if number:
            _must_say_itself(component, request.components[:number])
            lines.append("hetjob")
        lines += _asked(component.resources)
    return lines


def _dependency(after: After | None) -> list[str]:
    """Return what lets a job start some minutes after another began, or was cancelled; Slurm 20.02 and later count minutes."""
    if after is None:
        return []
    job = after.job.partition("://")[2]
    if after.ended:
        return [_option("dependency", f"afterany:{job}")]
    if after.seconds is None:
        return []
    minutes = max(0, after.seconds) // MINUTE
    return [_option("dependency", f"after:{job}+{minutes}" if minutes else f"after:{job}")]


def _asked(resources: Resources) -> list[str]:
    """Return what one component asks for; what the user chose himself stands behind the site's own lines, and so beats them."""
    values = {
        "partition": resources.queue,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.walltime,
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        **_devices(resources),
        "cpus-per-task": str(resources.cpus) if resources.cpus else None,
        "mem": resources.memory,
        "nodelist": resources.nodelist,
        "exclude": resources.exclude,
    }
    lines = [_option(name, value) for name, value in values.items() if value]
    lines.append("--no-kill")  # the loss of one node does not end the others
    lines += [_further(line) for line in resources.directives]
    if resources.constraint:
        lines.append(_option("constraint", resources.constraint))
    return lines


def _devices(resources: Resources) -> dict[str, str]:
    if not resources.devices or resources.device_option == "none":
        return {}
    kind = f"{resources.device_type}:" if resources.device_type else ""
    prefix = "gpu:" if resources.device_option == "gres" else ""
    return {resources.device_option: f"{prefix}{kind}{resources.devices}"}


def _notice(resources: Resources) -> int:
    return notice(parse_walltime(resources.walltime)) if resources.walltime else NOTICE_SECONDS


def _output(request: JobRequest) -> str:
    """Return the pattern of the output file; `%j` is the job's id."""
    path = f"{output_folder(request)}/{request.components[0].stem}"
    if "\\" in path:  # sbatch would take it for the wish to replace nothing
        raise ConfigError(
            f"Slurm cannot write below a folder with a backslash in its name: {path}",
            hint="choose another with --log-dir",
        )
    return path.replace("%", "%%") + LOG


def _must_say_itself(component: Component, earlier: Sequence[Component]) -> None:
    """Refuse a component that would silently get what was meant for another.

    Raises:
        ConfigError: it would.
    """
    for name, words in INHERITED.items():
        if getattr(component.resources, name):
            continue
        for other in earlier:
            if value := getattr(other.resources, name):
                raise ConfigError(
                    f"{', '.join(component.models)} says no {words}, and Slurm would give it that of "
                    f"{', '.join(other.models)} in the same job: {value}",
                    hint="give it for both, or submit them one by one",
                )


def _option(name: str, value: str) -> str:
    if CONTROL.search(value):
        raise ConfigError(
            f"sbatch cannot be told --{name}: {value!r}",
            hint="no #SBATCH line can hold a line break or another control character",
        )
    if not PLAIN.fullmatch(value):
        value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return f"--{name}={value}"


def _further(line: str) -> str:
    """Return a directive of the platform or the user; it stands as it is, on a line of its own."""
    text = line.strip().removeprefix("#SBATCH").strip()
    if CONTROL.search(text):
        raise ConfigError(f"a directive of Slurm is one line, not {line!r}")
    return text


def _narrowing(number: int) -> tuple[str, ...]:
    """Return the lines after which a component sees its own nodes: everything else in the environment is of the first one."""
    return (
        f"export {GROUP_VARIABLE}={number}",
        f'export SLURM_JOB_NODELIST="$SLURM_JOB_NODELIST_HET_GROUP_{number}"',
        "unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK  # srun of later releases would ask for the same here",
    )
