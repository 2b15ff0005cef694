"""What a job asks of PBS, as the `#PBS` lines of its script; pure."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from aegis.errors import ConfigError
from aegis.schedulers.base import RUN_DIR_VARIABLE
from aegis.schedulers.script import JobShell
from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.schedulers.base import After, Component, JobRequest, Resources

MAX_NAME = 64  # of the 230 that PBS takes
PLAIN = re.compile(r"[^A-Za-z0-9_@%+=:,./-]")  # anything else stands behind a backslash
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MEMORY = re.compile(r"(\d+) ?([kmgtp])(?:i?b)?", re.IGNORECASE)
RESOURCE = re.compile(r"[A-Za-z]\w*=[\w.+-]+", re.ASCII)
LISTED = re.compile(r"[\w.:/+-]+", re.ASCII)  # `-l` splits at commas
# What only Slurm has, and what does the same here.
SLURM_ONLY = {
    "qos": "choose a queue with --queue; a site's further options go into `directives`",
    "constraint": "ask for the resource that your site made for it, such as `directives: [-l NAME=VALUE]`",
    "exclude": "name the nodes to run on with --nodelist, or a resource that your site made for it in `directives`",
}
NODE_FILE = f'"${RUN_DIR_VARIABLE}"/nodefile'


def job_shell(request: JobRequest) -> JobShell:
    """Return what the script of a job on PBS has besides the common part.

    Raises:
        ConfigError: something is asked for that PBS does not have, or that it cannot be told.
    """
    return JobShell(
        scheme="pbs",
        directives=tuple(f"#PBS {line}" for line in _directives(request)),
        first=('short_id=$(cut -d. -f1,2 <<<"$PBS_JOBID")',),
        job_id="$PBS_JOBID",
        folder_id="$short_id",
        narrowing=_narrowing([component.resources.nodes for component in request.components]),
    )


def output_folder(request: JobRequest) -> str:
    """Return where PBS itself writes what a job says before it has a run directory, and why PBS ended it."""
    return f"{request.components[0].folder}/.pbs/"


def _directives(request: JobRequest) -> list[str]:
    every = [component.resources for component in request.components]
    extra = list(dict.fromkeys(_further(line) for each in every for line in each.directives))
    lines = [f"-N {_name(request.name)}", f"-l select={_select(every)}"]
    walltimes = [each.walltime for each in every if each.walltime]
    if walltimes:
        lines.append(f"-l walltime={format_walltime(max(map(parse_walltime, walltimes)))}")
    if filesystems := _shared(request.components, "filesystems"):
        lines.append(f"-l filesystems={_listed('filesystems', filesystems)}")
    if account := _shared(request.components, "account"):
        lines.append(f"-A {_word('the account', account)}")
    if queue := _shared(request.components, "queue"):
        lines.append(f"-q {_word('the queue', queue)}")
    # -k d writes to -o at once, and into a folder a file per job; -r y: put back into the queue when a node is lost
    lines += ["-j oe", "-k doe", f"-o {_word('the log directory', output_folder(request))}", "-r y"]
    lines += _dependency(request.after)
    if not any("place=" in line for line in extra):
        lines.append("-l place=scatter")  # every node is another machine
    return lines + [line for line in extra if line]


def _dependency(after: After | None) -> list[str]:
    """Return what lets a job start after another; PBS reads times of where it is submitted."""
    if after is None:
        return []
    job = _word("the job", after.job.partition("://")[2])
    if after.ended:
        return [f"-W depend=afterany:{job}"]
    if after.time is None:
        return []
    moment = time.strftime("%Y%m%d%H%M.%S", time.localtime(after.time))
    return [f"-W depend=after:{job}", f"-a {moment}"]


def _select(every: Sequence[Resources]) -> str:
    """Return the chunks of all components, in their order: so come the nodes."""
    pools = {each.nodelist: _hosts(each.nodelist) for each in every if each.nodelist}
    chunks = []
    for each in every:
        pool = pools.get(each.nodelist or "", [])
        named, pool[:] = pool[: each.nodes], pool[each.nodes :]
        what = _chunk(each)
        chunks += [f"1:host={host}{what}" for host in named]
        if rest := each.nodes - len(named):
            chunks.append(f"{rest}{what}")
    left = [host for pool in pools.values() for host in pool]
    if left:
        raise ConfigError(
            f"more nodes are named than the job has: {', '.join(left)}",
            hint="name as many with --nodelist as it needs, or raise --nodes",
        )
    return "+".join(chunks)


def _chunk(resources: Resources) -> str:
    """Return what is asked for on each node."""
    for name, hint in SLURM_ONLY.items():
        if value := getattr(resources, name):
            raise ConfigError(f"PBS has no {name}: `{value}`", hint=hint)
    asked = []
    if resources.cpus:
        asked.append(f"ncpus={resources.cpus}")
    if resources.devices and resources.device_option != "none":
        asked.append(f"ngpus={resources.devices}")
    if resources.device_type and resources.device_option != "none":  # else nodes are whole, and of one kind
        if not RESOURCE.fullmatch(resources.device_type):
            raise ConfigError(
                f"PBS has no types of devices: `{resources.device_type}`",
                hint="give the resource that your site made for them, such as --resource-type gpu_model=a100",
            )
        asked.append(resources.device_type)
    if resources.memory:
        match = MEMORY.fullmatch(resources.memory.strip())
        if not match:
            raise ConfigError(
                f"`{resources.memory}` is no amount of memory", hint="give a number and a unit, such as 64G"
            )
        asked.append(f"mem={match[1]}{match[2].lower()}b")
    return "".join(f":{each}" for each in asked)


def _hosts(nodelist: str) -> list[str]:
    hosts = [host.strip() for host in nodelist.split(",")]
    for host in hosts:
        if not HOST.fullmatch(host):
            raise ConfigError(
                f"`{host}` is no host name",
                hint="PBS takes the names of nodes one by one, with commas between",
            )
    return list(dict.fromkeys(hosts))


def _shared(components: Sequence[Component], name: str) -> str | None:
    """Return what all components of one job must have in common."""
    values = list(dict.fromkeys(getattr(each.resources, name) for each in components))
    given = [value for value in values if value]
    if len(given) > 1:
        raise ConfigError(
            f"one PBS job has one {name}, not {' and '.join(f'`{each}`' for each in given)}",
            hint="submit the models one by one",
        )
    return given[0] if given else None


def _name(name: str) -> str:
    """Return the job's name as PBS allows it: a letter, then letters, digits and four signs."""
    clean = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-")
    return (clean if clean[:1].isalpha() else f"aegis-{clean}".rstrip("-"))[:MAX_NAME]


def _word(what: str, value: str) -> str:
    """Return a value as one word of a directive."""
    if not value.isascii() or not value.isprintable():
        raise ConfigError(
            f"PBS cannot be told {what}: {value!r}", hint="it takes printable ASCII characters only"
        )
    return PLAIN.sub(r"\\\g<0>", value)


def _listed(what: str, value: str) -> str:
    """Return a value of `-l`, which no quoting protects."""
    if not LISTED.fullmatch(value):
        raise ConfigError(
            f"PBS cannot be told {what}: {value!r}",
            hint="names with a colon between them, such as flare:home",
        )
    return value


def _further(line: str) -> str:
    """Return a directive of the platform or the user; it stands as it is, on a line of its own."""
    text = line.strip().removeprefix("#PBS").strip()
    if not text.isprintable():
        raise ConfigError(f"a directive of PBS is one line of printable characters, not {line!r}")
    return text


def _narrowing(nodes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return per component the lines that leave it its own nodes: they come in the order of the chunks."""
    if len(nodes) == 1:
        return ()
    ends = [sum(nodes[: number + 1]) for number in range(len(nodes))]
    return tuple(
        (
            f"awk '!seen[$0]++ && ++n > {end - count} && n <= {end}' \"$PBS_NODEFILE\" >{NODE_FILE} || exit 3",
            f'if [ "$(wc -l <{NODE_FILE})" -ne {count} ]; then',
            "  echo 'error: PBS gave the job fewer nodes than it asked for' >&2",
            "  exit 3",
            "fi",
            f"export PBS_NODEFILE={NODE_FILE}",
        )
        for count, end in zip(nodes, ends, strict=True)
    )
