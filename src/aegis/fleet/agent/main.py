"""The command line of the agent, and the files that it reads."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
from typing import Any

from .guard import Guard, wait_for_predecessor
from .processes import PR_SET_PDEATHSIG, prctl

ENDED_BY_ITSELF = (0, 1)  # told to stop, or every instance given up


def own_names() -> list[str]:
    """Return what this node may be called in the file; Slurm may know it by another name than it has."""
    names = [socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")]
    return [name for name in dict.fromkeys([*names, names[0].split(".")[0]]) if name]


def read_order(path: str, node: str) -> dict[str, Any]:
    """Return this node's line of the fleet file: the one named, else the one of this host.

    One file serves all nodes, one line each: ten thousand small files would be slower than the servers. PBS lists nodes
    by names with a domain, which the host itself may not have.
    """
    names = [node] if node else own_names()
    exact = tuple(b'{"node":' + _text(name) for name in names)
    longer = () if node else tuple(b'{"node":' + _text(name)[:-1] + b"." for name in names)
    near = b""
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(exact):
                near = line
                break
            if not near and line.startswith(longer):
                near = line
    if not near:
        raise SystemExit("aegis agent: {} has no line for node {}".format(path, " or ".join(sorted(names))))
    found: dict[str, Any] = json.loads(near)
    return found


def _text(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False).encode()


def read_secrets(path: str) -> dict[str, Any]:
    """Return the secrets, from a file that only its owner may read."""
    if not path:
        return {}
    with open(path) as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise SystemExit(f"aegis agent: {path} may be read by others: chmod 600")
        found: dict[str, Any] = json.load(file)
        return found


def main(argv: list[str]) -> int:
    """Run as guard, or as worker where the guard asks for it."""
    parser = argparse.ArgumentParser(prog="aegis-agent", description="Run the instances of one node.")
    parser.add_argument("fleet", help="the fleet file (JSON lines, one per node)")
    parser.add_argument("--node", default="", help="name of this node in the file (default: the host name)")
    parser.add_argument("--secrets", default="", help="JSON file, mode 0600")
    parser.add_argument("--parent", type=int, default=0, help="end when this process ends")
    parser.add_argument("--folder", default="", help="made for this agent alone: removed at its end")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        order = read_order(options.fleet, options.node)
        if not options.worker:
            # the orders may lie elsewhere when an agent is started again, the secrets never do
            hold = wait_for_predecessor(os.path.abspath(options.secrets or options.fleet), order["node"])
            code = Guard(argv, options.parent, hold).run()
            if options.folder and code in ENDED_BY_ITSELF:  # who was killed may be started again
                shutil.rmtree(options.folder, ignore_errors=True)
            return code
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != options.worker:
            return 1
        from .node import Agent  # noqa: PLC0415 - the guard starts faster and stays smaller without it

        return Agent(order, read_secrets(options.secrets)).run()
    except (OSError, ValueError) as error:
        print(f"aegis agent: {error}", file=sys.stderr)
        return 1
