"""The nodes that a launch may use: those of the allocation that it runs in, or this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.spec.platform import Platform

ANY = "0.0.0.0"  # noqa: S104 - clients and other nodes have to reach the servers
LOOPBACKS = 250  # simulated nodes per 127.0.x network
SCONTROL_TIMEOUT = 30


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


def allocation(platform: Platform, environ: Mapping[str, str]) -> list[Host]:
    """Return the nodes of this launch.

    Raises:
        SiteError: the platform has a scheduler and this is no allocation of it, or its node list is unreadable.
    """
    if platform.launcher == "local":
        return local_hosts(platform.nodes)
    names = _allocated_names(environ)
    if not names:
        raise SiteError(
            f"this is no allocation: neither PBS_NODEFILE nor SLURM_JOB_NODELIST is set, and platform "
            f"{platform.name} starts servers with {platform.launcher}",
            hint="use `aegis submit`, or --platform local to use this machine",
        )
    suffix = platform.network.host_suffix
    return [Host(name, f"{name.partition('.')[0]}{suffix}" if suffix else name, ANY) for name in names]


def head_of(hosts: Sequence[Host], machine: str) -> Host:
    """Return where this process runs: one of the nodes, or a login node that holds the allocation (salloc)."""
    if hosts[0].bind != ANY:
        return hosts[0]
    short = machine.partition(".")[0]
    for host in hosts:
        if host.name.partition(".")[0] == short:
            return host
    return Host(machine, machine, ANY)


def _allocated_names(environ: Mapping[str, str]) -> list[str]:
    if node_file := environ.get("PBS_NODEFILE"):
        try:
            lines = Path(node_file).read_text().split()
        except OSError as error:
            raise SiteError(f"PBS_NODEFILE cannot be read: {node_file}: {error.strerror}") from None
        return list(dict.fromkeys(lines))  # one line per rank: each node once, in order
    if node_list := environ.get("SLURM_JOB_NODELIST"):
        try:
            answer = subprocess.run(
                ["scontrol", "show", "hostnames", node_list],
                capture_output=True,
                text=True,
                check=True,
                timeout=SCONTROL_TIMEOUT,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SiteError(f"the node list of this allocation cannot be read: {error}") from None
        return answer.stdout.split()
    return []
