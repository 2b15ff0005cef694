"""Ports: reserved against other agents of the machine, and moved on where they are taken."""

from __future__ import annotations

import os
import socket
from typing import Any

LAST_PORT = 65535
MAX_PORT_SHIFTS = 12


def port_owner(port: int) -> str:
    """Return ` by pid 123 (python -m http.server)` for a listening port of this user, as far as /proc tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                        inodes.add(f"socket:[{fields[9]}]")
        except OSError:
            continue
    for entry in os.listdir("/proc"):
        if entry.isdigit() and inodes:
            try:
                for fd in os.listdir(f"/proc/{entry}/fd"):
                    if os.readlink(f"/proc/{entry}/fd/{fd}") in inodes:
                        with open(f"/proc/{entry}/cmdline", "rb") as file:
                            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
                        return f" by pid {entry} ({command[:200]})"
            except OSError:
                continue
    return ""


class PortHold:
    """Holds a port against other agents of this machine until it is released or the agent dies.

    The name is in the abstract socket namespace: it belongs to the machine, not to a user, and no file is left.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(f"\0aegis-port-{host}-{port}")
        except OSError:
            self._socket.close()
            raise

    def release(self) -> None:
        """Give the port up."""
        self._socket.close()


def reserve_port(host: str, port: int) -> PortHold | None:
    """Return a hold on the port, or None when somebody listens there or another agent holds it."""
    try:
        hold = PortHold(host, port)
    except OSError:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            hold.release()
            return None
    return hold


class Ports:
    """The ports of one instance, held from its first start to its last end."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.api: int = order["port"]
        self.internal: int = order["internal_port"]
        self._hold: PortHold | None = None

    def take(self) -> str:
        """Reserve a port, moving on by whole blocks where the user named none. Return what is wrong, if anything."""
        if self._hold is not None or self.order["rank"] > 0:
            return ""
        host, shifts = self.order["bind"], 1 if self.order["port_pinned"] else MAX_PORT_SHIFTS
        for shift in range(shifts):
            step = shift * self.order["port_block"]
            port = self.order["port"] + step
            if port > LAST_PORT:
                break
            self._hold = reserve_port(host, port)
            if self._hold is not None:
                self.api, self.internal = port, self.order["internal_port"] + step
                return ""
        port = self.order["port"]
        more = "" if shifts == 1 else f", and so are the next {shifts - 1} candidates"
        return f"port is taken: {port} on {host}{port_owner(port)}{more}"

    def release(self) -> None:
        """Give the port up, if one is held."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None
