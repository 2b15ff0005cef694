"""The way from a user's own machine to a server on a compute node."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.fleet.registries import endpoints_of
from aegis.runs import ENDED
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.registry.model import Service
    from aegis.runs import Manifest
    from aegis.schedulers.ssh import Ssh

PROBE_SECONDS = 5.0
POLL_SECONDS = 1.0
LOOPBACK = "localhost"


class Server(Struct, frozen=True):
    """One server of a job."""

    name: str
    host: str  # as it announces itself
    port: int
    node: str  # that it runs on, as ssh knows it

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Whether only its own node reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == LOOPBACK


def find_server(jobs: Jobs, job: str, name: str | None) -> Server:
    """Return a server of a job: the one of that name or address, or the first.

    Raises:
        NotFoundError: there is no such job, or no such server.
        AegisError: the job has ended, or has no server yet.
    """
    manifest = jobs.find(job)
    view = jobs.views([manifest])[0]
    servers = _servers(jobs, manifest, view)
    if not servers:
        reason = f": {view.reason.splitlines()[0]}" if view.reason else ""
        raise AegisError(
            f"job {view.job_id} has no healthy server; it is {view.model_status}{reason}",
            hint=None if view.model_status in ENDED else f"`aegis wait {view.job_id} --for ready`",
        )
    for each in servers:
        if name in (None, each.name, each.address):
            return each
    names = [each.name for each in servers]
    raise NotFoundError(
        f"job {view.job_id} has no healthy server `{name}`",
        hint=did_you_mean(name or "", names) or f"one of {', '.join(names[:8])}",
    )


def ssh_command(server: Server, login: str, near: int, *, through: bool) -> list[str]:
    """Return the command that opens the way by hand, straight from the login node or through the server's own."""
    if not through:
        return ["ssh", "-N", "-L", f"{near}:{server.address}", login]
    user, at, _ = login.rpartition("@")
    beyond = f"{user}{at}{server.node}"
    return ["ssh", "-N", "-J", login, "-L", f"{near}:{LOOPBACK}:{server.port}", beyond]


def is_elsewhere(server: Server, machine: str) -> bool:
    """Tell whether only another node than this machine reaches the server; a node that is itself named so is a node."""
    return server.is_private and server.node != server.host and _label(server.node) != _label(machine)


@contextlib.contextmanager
def reach(ssh: Ssh, server: Server, near: int, say: Callable[[str], None]) -> Iterator[Ssh]:
    """Hold a way from a port of this machine to a server: from the login node, or where that fails through its own node.

    Yields:
        The machine at the end of the last connection.

    Raises:
        SiteError: neither leads to it.
    """
    with contextlib.ExitStack() as stack:
        if not is_elsewhere(server, ssh.run(["uname", "-n"]).out.strip()):
            stack.enter_context(ssh.forward(server.host, server.port, near))
            if answers(near):
                yield ssh
                return
            stack.close()
        say(f"{ssh.name} does not lead to {server.address}; trying through {server.node}")
        user, at, _ = ssh.name.rpartition("@")
        try:
            node = stack.enter_context(ssh.onward(f"{user}{at}{server.node}"))
        except SiteError as error:
            raise SiteError(
                f"no way leads to {server.address}: not from {ssh.name} itself, and {error.message}",
                hint=f"may you log in to {server.node} while the job runs?",
            ) from None
        stack.enter_context(node.forward(LOOPBACK, server.port, near))
        if not answers(near):
            raise SiteError(f"nothing answers at port {server.port} of {server.node}")
        yield node


def hold(ssh: Ssh, server: Server, near: int, ready: Callable[[], None], say: Callable[[str], None]) -> None:
    """Keep a server reachable until the user has enough; a connection that is cut is opened again.

    Raises:
        SiteError: the server cannot be reached, or not any more.
    """
    while True:
        with reach(ssh, server, near, say) as last:
            ready()
            while ssh.is_alive and last.is_alive:
                time.sleep(POLL_SECONDS)


def answers(port: int) -> bool:
    """Tell whether something is at the far end of a port of this machine: it may be slow, but does not hang up."""
    try:
        with socket.create_connection(("127.0.0.1", port), PROBE_SECONDS) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return bool(connection.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def near_port(preferred: int) -> int:
    """Return a port of this machine that nobody listens on, that one if possible."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            free: int = probe.getsockname()[1]
            return free
    raise SiteError("no port of this machine is free")


def _servers(jobs: Jobs, manifest: Manifest, view: JobView) -> list[Server]:
    """Return what the registry says is healthy, gateways first; where it is silent, what the endpoints file says."""
    if view.model_status in ENDED:
        return []
    healthy = [
        _of_service(service, manifest)
        for service in (*view.gateways, *view.services)
        if service.status == "healthy" and not service.metadata.get("rank")
    ]
    return healthy or _of_lines(endpoints_of(jobs.transport, manifest), manifest)


def _of_service(service: Service, manifest: Manifest) -> Server:
    node = str(service.metadata.get("node") or service.host)
    local = manifest.job.startswith("local://")  # the names of its nodes are known to nobody else
    return Server(service.service_id, service.host, service.port, manifest.host if local else node)


def _of_lines(lines: Sequence[str], manifest: Manifest) -> list[Server]:
    found = []
    for line in lines:
        host, _, port = line.rpartition(":")
        if host and port.isdecimal():
            server = Server(line, host.strip("[]"), int(port), host.strip("[]"))
            found.append(
                Server(line, server.host, server.port, manifest.host) if server.is_private else server
            )
    return found


def _label(host: str) -> str:
    return host.partition(".")[0].lower()
