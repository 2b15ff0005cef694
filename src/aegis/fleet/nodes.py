"""The nodes that a launch may use: those of the allocation that it runs in, or this machine."""

from __future__ import annotations

import re
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import SiteError
from aegis.schedulers.base import GROUP_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegis.spec.platform import Platform

ANY = "0.0.0.0"  # noqa: S104 - clients and other nodes have to reach the servers
LOOPBACKS = 250  # simulated nodes per 127.0.x network
MOST_NODES = 1_000_000  # of a list: more is an error of its writer
WORDS = re.compile(r"(?:\[[^\[\]]*\]|[^\[\],])+|[\[\]]")  # between commas, those in brackets apart
PART = re.compile(r"([^\[\],]*)(?:\[([0-9,-]+)\])?")
ITEM = re.compile(r"[^\[\],]+|(?:[^\[\],]*\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\])+")


class Host(Struct, frozen=True):
    """One node of the launch."""

    name: str
    address: str  # by which clients and other nodes reach it
    bind: str  # where its servers listen


def local_hosts(count: int) -> list[Host]:
    """Return this machine, or as many nodes played by it as asked for: each has a loopback address of its own."""
    if count == 1:
        return [Host("local", "127.0.0.1", "127.0.0.1")]
    addresses = [f"127.0.{index // LOOPBACKS}.{index % LOOPBACKS + 1}" for index in range(count)]
    return [Host(f"local-{index}", address, address) for index, address in enumerate(addresses)]


def allocation(platform: Platform, environ: Mapping[str, str], spare: int = 0) -> list[Host]:
    """Return the nodes of this launch; `spare`: how many more than the platform's this machine plays.

    Raises:
        SiteError: the platform has a scheduler and this is no allocation of it, or its node list is unreadable.
    """
    if platform.launcher == "local":
        return local_hosts(platform.nodes + spare)
    names = _allocated_names(environ)
    if not names:
        raise SiteError(
            f"this is no allocation: neither PBS_NODEFILE nor SLURM_JOB_NODELIST is set, and platform "
            f"{platform.name} starts servers with {platform.launcher}",
            hint="use `aegis submit`, or --platform local to use this machine",
        )
    suffix = platform.network.host_suffix
    return [Host(name, f"{name.partition('.')[0]}{suffix}" if suffix else name, ANY) for name in names]


def head_of(
    hosts: Sequence[Host], machine: str, suffix: str = "", knows: Callable[[str], bool] | None = None
) -> Host:
    """Return where this process runs: one of the nodes, another node of the job, or a login node that holds it (salloc).

    Args:
        hosts: the nodes of the launch; a component of a job may have none in common with the one that runs its head.
        machine: the name of this machine.
        suffix: of names in the fast network, which nodes have and login nodes may not.
        knows: tells whether a name has an address.
    """
    if hosts[0].bind != ANY:
        return hosts[0]
    short = machine.partition(".")[0]
    for host in hosts:
        if host.name.partition(".")[0] == short:
            return host
    fast = short + suffix
    return Host(machine, fast if suffix and (knows or has_address)(fast) else machine, ANY)


def has_address(name: str) -> bool:
    """Tell whether a name of a machine is known here."""
    import socket  # noqa: PLC0415 - start-up time

    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def expand(expression: str) -> list[str]:
    """Return the names of a Slurm host list, such as `n[1-3,7],x[01-02]`, as `scontrol show hostnames` does.

    Raises:
        ValueError: it is none.
    """
    names: list[str] = []
    for item in WORDS.findall(expression.strip()):
        if not ITEM.fullmatch(item):
            raise ValueError(f"{item!r} is no host list")
        choices = [choice for text, ranges in PART.findall(item) for choice in ([text], _numbers(ranges))]
        if len(names) + prod(map(len, choices)) > MOST_NODES:
            raise ValueError(f"{item!r} names more than {MOST_NODES} hosts")
        names += map("".join, product(*choices))
    return names


def _numbers(ranges: str) -> list[str]:
    """Return the numbers of `1-3,07`, each as wide as the range's first."""
    found = []
    for each in filter(None, ranges.split(",")):
        first, _, last = each.partition("-")
        count = int(last or first) - int(first) + 1
        if not 0 < count <= MOST_NODES:
            raise ValueError(f"{each!r} is no range of hosts")
        found += [str(int(first) + number).zfill(len(first)) for number in range(count)]
    return found or [""]


def _allocated_names(environ: Mapping[str, str]) -> list[str]:
    if node_file := environ.get("PBS_NODEFILE"):
        try:
            lines = Path(node_file).read_text().split()
        except OSError as error:
            raise SiteError(f"PBS_NODEFILE cannot be read: {node_file}: {error.strerror}") from None
        return list(dict.fromkeys(lines))  # one line per rank: each node once, in order
    group = environ.get(GROUP_VARIABLE)
    own = environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{group}") if group else None
    if node_list := own or environ.get("SLURM_JOB_NODELIST"):
        try:
            return list(dict.fromkeys(expand(node_list)))
        except ValueError as error:
            raise SiteError(f"the node list of this allocation cannot be read: {error}") from None
    return []
