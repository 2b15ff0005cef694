"""`aegis tunnel`: reach a server of a job from another machine."""

from __future__ import annotations

import os
import shlex
import signal
from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import say

if TYPE_CHECKING:
    from aegis.fleet.tunnel import Server


@click.command()
@click.argument("handle")
@click.argument("instance", required=False)
@click.option("--remote", metavar="USER@HOST", help="The login node that leads to the job.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="The port on this machine (default: the server's own, or a free one).",
)
@click.option("--print", "only_print", is_flag=True, help="Print the ssh command instead.")
def command(
    handle: str, instance: str | None, remote: str | None, port: int | None, only_print: bool
) -> None:
    """Open a way through ssh to a server of a job, print its URL, and stay until Ctrl-C.

    INSTANCE is a name of `aegis status HANDLE` (default: the first that is healthy, gateways before servers). Without --remote, on the login node
    itself: print the command for your own machine.
    """
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time
    from aegis.fleet.tunnel import find_server, hold, is_elsewhere, near_port  # noqa: PLC0415 - as above

    if remote is None:
        import getpass  # noqa: PLC0415 - start-up time
        import socket  # noqa: PLC0415 - as above

        server = find_server(Jobs(os.environ), handle, instance)
        login = f"{getpass.getuser()}@{socket.getfqdn()}"
        _print_command(server, login, port, through=is_elsewhere(server, os.uname().nodename))
        return
    from aegis.schedulers.ssh import connect  # noqa: PLC0415 - start-up time

    with connect(remote, say) as ssh:
        server = find_server(Jobs(os.environ, ssh), handle, instance)
        if only_print:
            machine = ssh.run(["uname", "-n"]).out.strip()
            _print_command(server, remote, port, through=is_elsewhere(server, machine))
            return
        near = port or near_port(server.port)
        told: list[str] = []

        def ready() -> None:
            if not told:
                click.echo(f"http://127.0.0.1:{near}/v1")
            told.append(
                f"{server.name} of {handle} is open on port {near}{' again' if told else ''}; Ctrl-C ends it"
            )
            say(told[-1])

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a connection of the user's own stays open
        try:
            hold(ssh, server, near, ready, say)
        except KeyboardInterrupt:
            if not told:
                raise


def _print_command(server: Server, login: str, port: int | None, *, through: bool) -> None:
    from aegis.fleet.tunnel import ssh_command  # noqa: PLC0415 - start-up time

    near = port or server.port
    click.echo(shlex.join(ssh_command(server, login, near, through=through)))
    say(f"run it on your own machine; {server.name} is then http://127.0.0.1:{near}/v1")
    if not through and not server.is_private:
        other = shlex.join(ssh_command(server, login, near, through=True))
        say(f"where the login node does not forward to it: {other}")
