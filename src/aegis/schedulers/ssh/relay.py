"""A port of this machine whose connections are carried by sessions, for where sshd forwards no ports."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from aegis.schedulers.ssh.remote import Command, begin, stdin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.schedulers.ssh.master import Link

BLOCK = 1 << 16
CONNECT = 'exec 3<>"/dev/tcp/$1/$2"'
CARRY = f"{CONNECT} || exit; cat <&0 >&3 & cat <&3; kill $!"


class Relay:
    """Carries each connection to a host and port over there by a session of its own."""

    def __init__(self, link: Link, slots: threading.BoundedSemaphore, host: str, port: int) -> None:
        self.link = link
        self.slots = slots
        self.command = Command(["bash", "-c", CARRY, "aegis", host, str(port)])
        self._open: set[socket.socket] = set()

    @contextlib.contextmanager
    def listen(self, local: int) -> Iterator[int]:
        """Yield the port here (0: any).

        Raises:
            OSError: it is taken.
        """
        with socket.create_server(("127.0.0.1", local)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                yield listener.getsockname()[1]
            finally:
                _hang_up(listener)
                for connection in tuple(self._open):
                    _hang_up(connection)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # until the listener is closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        mark = f"aegis-{secrets.token_hex(8)}"
        self._open.add(connection)
        with connection, self.slots, contextlib.suppress(OSError):
            session = subprocess.Popen(
                [*self.link.argv(), self.command.shell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            with session:
                forth = threading.Thread(
                    target=_forth, args=(connection, session, stdin(self.command, mark)), daemon=True
                )
                forth.start()
                _back(session, connection, begin(mark))
                session.terminate()
                _hang_up(connection)
                forth.join()
        self._open.discard(connection)


def _forth(connection: socket.socket, session: subprocess.Popen[bytes], data: bytes) -> None:
    """Carry what is said here, after some first words; who hangs up wants no answer any more."""
    with contextlib.suppress(OSError):
        while session.stdin and data:
            session.stdin.write(data)
            data = connection.recv(BLOCK)
    session.terminate()


def _back(session: subprocess.Popen[bytes], connection: socket.socket, mark: bytes) -> None:
    """Carry what is said there, from the marker on."""
    said, begun = b"", False
    with contextlib.suppress(OSError):
        while session.stdout and (data := session.stdout.read(BLOCK)):
            said += data
            if not begun:
                _, found, rest = said.partition(mark)
                begun, said = bool(found), rest if found else said
            if begun:
                connection.sendall(said)
                said = b""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
