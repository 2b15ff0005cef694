"""The command line of the stager."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from . import net
from .head import Head
from .items import ListError, parse
from .nodes import LOST_SECONDS, Nodes
from .receive import Receiver
from .secret import Refused, read_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = 2
JOIN_SECONDS = 120.0


def main(argv: Sequence[str]) -> int:
    """Run as the head or on a node; return the exit code."""
    options = _parser().parse_args(argv)
    threading.excepthook = _end_at_once
    try:
        secret = read_secret(options.secret_file)
        code = _head(options, secret) if options.role == "head" else _receive(options, secret)
    except (ValueError, ListError) as error:
        return _say(str(error), USAGE)
    except BrokenPipeError:
        return _leave(1)  # nobody listens
    except (OSError, Refused) as error:
        return _say(str(error), 1)
    return _leave(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aegis-stager", description="Stage files on many nodes over TCP.")
    roles = parser.add_subparsers(dest="role", required=True)
    head = roles.add_parser("head", help="read the sources and send them")
    head.add_argument("list", help="the list file")
    head.add_argument("--nodes", required=True, help="names, comma-separated; or @FILE with one a line")
    head.add_argument(
        "--port", type=int, default=0, help="for the nodes to come to (default: any that is free)"
    )
    head.add_argument("--join-seconds", type=float, default=JOIN_SECONDS, help="for all nodes to come")
    head.add_argument(
        "--stall-seconds", type=float, default=LOST_SECONDS, help="until a silent node is given up"
    )
    head.add_argument(
        "--hear",
        action="store_true",
        help="on standard input: `NAME WHY` a line, of nodes that will not come",
    )
    task = head.add_mutually_exclusive_group()
    task.add_argument("--verify", action="store_true", help="hash again what was staged")
    task.add_argument("--clean", action="store_true", help="remove what was staged")
    receive = roles.add_parser("receive", help="take what the head sends")
    receive.add_argument("--head", required=True, help="ADDRESS:PORT")
    receive.add_argument("--node", default="", help="our name among the nodes (default: the host name)")
    receive.add_argument(
        "--suffix", default="", help=argparse.SUPPRESS
    )  # of destinations: several nodes on one
    for each in (head, receive):
        each.add_argument("--secret-file", default="", help="mode 0600, or - (default: the environment)")
        each.add_argument("--interface", default="", help="network interface to use")
    return parser


def _head(options: argparse.Namespace, secret: bytes) -> int:
    with open(options.list, "rb") as file:
        listing = file.read()
    items = parse(listing)
    head = Head(listing, items, _names(options.nodes), secret, options.stall_seconds)
    head.listen(net.address_of(options.interface) if options.interface else "", options.port)
    if options.hear:
        threading.Thread(target=_hear, args=(head.nodes,), daemon=True, name="hear").start()
    if options.verify or options.clean:
        return head.check("verify" if options.verify else "clean", options.join_seconds)
    return head.stage(options.join_seconds)


def _hear(nodes: Nodes) -> None:
    for line in sys.stdin:
        name, _, why = line.rstrip("\n").partition(" ")
        nodes.give_up(name, why)


def _receive(options: argparse.Namespace, secret: bytes) -> int:
    address, _, port = options.head.rpartition(":")
    names = [options.node] if options.node else _own_names()
    receiver = Receiver(secret, names, options.interface, options.suffix)
    return receiver.run(address.strip("[]"), int(port))


def _names(told: str) -> list[str]:
    if told.startswith("@"):
        with open(told[1:]) as file:
            names = [line.strip() for line in file]
    else:
        names = told.split(",")
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise ValueError("no nodes are named")
    return names


def _own_names() -> list[str]:
    """Return what this node may be called; Slurm may know it by another name than it has."""
    names = [socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")]
    return [name for name in dict.fromkeys(names) if name]


def _say(text: str, code: int) -> int:
    print(f"aegis stager: {text}", file=sys.stderr)
    return _leave(code)


def _leave(code: int) -> int:
    """End without waiting for threads: one may hang in a write for ever."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _end_at_once(what: threading.ExceptHookArgs) -> None:
    """End the whole program: with one of its threads gone it would wait for ever, and others for it."""
    if what.exc_type is not BrokenPipeError:
        traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)
    os._exit(1)
