"""Who may connect: those who know the secret, which itself never travels."""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

VARIABLE = "AEGIS_STAGE_SECRET"
NONCE = 32  # bytes, as long as a digest
SECONDS = 20.0  # for a stranger to show that it is none
HELLO = b"AEGIS-STAGER 1\n"


class Refused(Exception):
    """The other side does not know the secret."""


def read_secret(path: str) -> bytes:
    """Return the secret: from a file that only its owner may read, from standard input (`-`), or the environment.

    Raises:
        OSError: the file cannot be read.
        ValueError: others can read it, or there is no secret.
    """
    if path == "-":
        secret = sys.stdin.readline().strip()
    elif path:
        with open(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ValueError(f"{path} may be read by others: chmod 600")
            secret = file.read().strip()
    else:
        secret = os.environ.pop(VARIABLE, "")
    if len(secret) < 16:  # noqa: PLR2004 - 128 bits in hex have 32
        raise ValueError(f"no secret of 16 characters or more: name a file, or set {VARIABLE}")
    return secret.encode()


def ask(connection: socket.socket, secret: bytes) -> None:
    """Show the one who connects' secret, and see the other's.

    Raises:
        Refused: the other does not know it.
        OSError: the connection broke, or nothing came in time.
    """
    before = connection.gettimeout()
    connection.settimeout(SECONDS)
    mine = os.urandom(NONCE)
    connection.sendall(HELLO + mine)
    theirs, proof = _take(connection, NONCE), _take(connection, NONCE)
    if not hmac.compare_digest(proof, _proof(secret, b"answer", mine, theirs)):
        raise Refused("the other side does not know the secret")
    connection.sendall(_proof(secret, b"ask", mine, theirs))
    connection.settimeout(before)


def answer(connection: socket.socket, secret: bytes) -> None:
    """The same from the side that was connected to.

    Raises:
        Refused: whoever connected does not know the secret.
        OSError: the connection broke, or nothing came in time.
    """
    before = connection.gettimeout()
    connection.settimeout(SECONDS)
    if not hmac.compare_digest(_take(connection, len(HELLO)), HELLO):
        raise Refused("no stager")
    theirs, mine = _take(connection, NONCE), os.urandom(NONCE)
    connection.sendall(mine + _proof(secret, b"answer", theirs, mine))
    if not hmac.compare_digest(_take(connection, NONCE), _proof(secret, b"ask", theirs, mine)):
        raise Refused("the other side does not know the secret")
    connection.settimeout(before)


def _proof(secret: bytes, role: bytes, asker: bytes, answerer: bytes) -> bytes:
    return hmac.new(secret, role + b"\0" + asker + answerer, hashlib.sha256).digest()


def _take(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise Refused("the other side hung up")
        found += more
    return found
