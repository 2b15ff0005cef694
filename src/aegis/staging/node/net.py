"""Sockets: addresses of an interface, listening, connecting, and messages as JSON lines."""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from .secret import Refused, answer, ask

if TYPE_CHECKING:
    from collections.abc import Callable

SIOCGIFADDR = 0x8915
CONNECT_SECONDS = 20.0
LOST = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 120_000,
}  # s; the last: ms
LINE_LIMIT = 1 << 28  # bytes of a message
BACKLOG = 4096  # thousands of nodes come at once


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface.

    Raises:
        OSError: there is no such interface, or it has none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            found = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError as error:
            raise OSError(error.errno, f"interface {interface}: {error.strerror}") from None
    return socket.inet_ntoa(found[20:24])


def listen(address: str, port: int = 0) -> socket.socket:
    """Return a socket that listens; an empty address is all of this node's.

    Raises:
        OSError: the address is not of this node, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def serve(listening: socket.socket, secret: bytes, welcome: Callable[[socket.socket], None]) -> None:
    """Hand every connection that knows the secret to `welcome`, in a thread of its own; strangers are dropped."""

    def admit(connection: socket.socket) -> None:
        try:
            answer(connection, secret)
        except (Refused, OSError):
            connection.close()
        else:
            welcome(tuned(connection))

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                if listening.fileno() < 0:
                    return  # closed: nobody is awaited any more
                time.sleep(0.05)  # too many open files, for a moment
                continue
            threading.Thread(target=admit, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True, name="accept").start()


def connect(address: str, port: int, secret: bytes) -> socket.socket:
    """Return a connection, after both sides have shown that they know the secret.

    Raises:
        Refused: the other side does not know it.
        OSError: it cannot be reached.
    """
    connection = socket.create_connection((address, port), CONNECT_SECONDS)
    try:
        ask(connection, secret)
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    return tuned(connection)


def tuned(connection: socket.socket) -> socket.socket:
    """Return the connection, made for large frames and to notice a lost node."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in LOST.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def close(connection: socket.socket) -> None:
    """Close a connection, also under those who read or write it in other threads."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class Talk:
    """Messages over one connection; several threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = bytearray()
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send a message; a connection that is lost is noticed by whoever reads it."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self.connection.sendall(data)

    def read(self) -> list[dict[str, Any]] | None:
        """Return the messages that have come, after waiting for some bytes; None at the end."""
        try:
            data = self.connection.recv(1 << 18)
        except OSError:
            return None
        if not data:
            return None
        self._received += data
        if len(self._received) > LINE_LIMIT:
            return None
        if b"\n" not in data:
            return []
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return [message for message in messages if isinstance(message, dict)]
