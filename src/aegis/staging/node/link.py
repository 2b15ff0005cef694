"""One link of the chain: a thread that passes frames on, and can be tied to another node at any time."""

from __future__ import annotations

import collections
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from . import net
from .frames import Frame, send
from .secret import Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LIMIT = 24  # frames that wait to be sent


class Target(NamedTuple):
    """The next node of the chain."""

    name: str
    address: str
    port: int


class Link(threading.Thread):
    """Sends what it is given to the next node; without one (None) it drops it.

    A frame that could not be sent whole is sent again to whoever comes next, and nothing more until the head has said who
    that is.
    """

    def __init__(
        self, secret: bytes, linked: Callable[[str], None], broken: Callable[[str, str], None]
    ) -> None:
        super().__init__(daemon=True, name="link")
        self._secret = secret
        self._linked, self._broken = linked, broken
        self._queue: collections.deque[Frame] = collections.deque()
        self._changed = threading.Condition()
        self._target: Target | None = None
        self._decided = False  # whether the head has said who is next
        self._version = 0  # of the target
        self._connection: socket.socket | None = None
        self._end: Frame | None = None  # sent again to whoever is tied on later
        self._closed = False
        self._sending_since = 0.0
        self.sent = 0  # bytes of data

    def put(self, frame: Frame) -> None:
        """Pass a frame on, waiting while too many wait."""
        frame.hold()
        with self._changed:
            while len(self._queue) >= LIMIT and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._queue.append(frame)
                self._changed.notify_all()
                return
        frame.release()

    def tie(self, target: Target | None) -> None:
        """Send to this node from now on."""
        with self._changed:
            self._target, self._decided = target, True
            self._version += 1
            if self._connection is not None:
                net.close(self._connection)  # a send that hangs ends
                self._connection = None
            if self._end is not None and target is not None and self._end not in self._queue:
                self._end.hold()
                self._queue.append(self._end)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, whatever it waits for."""
        with self._changed:
            self._closed = True
            if self._connection is not None:
                net.close(self._connection)
                self._connection = None
            while self._queue:
                self._queue.popleft().release()
            self._changed.notify_all()

    @property
    def blocked(self) -> tuple[str, float]:
        """Which node takes nothing, and since how many seconds."""
        since, target = self._sending_since, self._target
        return (target.name, time.monotonic() - since) if since and target else ("", 0.0)

    def run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._something_to_do():
                    self._changed.wait()
                if self._closed:
                    return
                target, version, connection = self._target, self._version, self._connection
                frame = self._queue[0] if self._queue else None
            if target is None:
                self._pop(frame)
            elif connection is None:
                self._connect(target, version)
            elif frame is not None:
                self._send(connection, frame, target, version)

    def _something_to_do(self) -> bool:
        if not self._decided:
            return False
        return bool(self._queue) or (self._target is not None and self._connection is None)

    def _connect(self, target: Target, version: int) -> None:
        self._sending_since = time.monotonic()
        try:
            connection = net.connect(target.address, target.port, self._secret)
        except (OSError, Refused) as error:
            self._fail(target, version, f"cannot be reached at {target.address}:{target.port}: {error}")
            return
        finally:
            self._sending_since = 0.0
        with self._changed:
            if version != self._version or self._closed:
                net.close(connection)
                return
            self._connection = connection
        self._linked(target.name)

    def _send(self, connection: socket.socket, frame: Frame, target: Target, version: int) -> None:
        self._sending_since = time.monotonic()
        try:
            send(connection, frame.parts)
        except (OSError, ValueError) as error:  # ValueError: closed under us
            self._fail(target, version, f"the connection to it broke: {error}")
        else:
            self.sent += frame.size
            if frame.last:
                self._end = frame
                frame.hold()
            self._pop(frame)
        finally:
            self._sending_since = 0.0

    def _fail(self, target: Target, version: int, error: str) -> None:
        with self._changed:
            if version != self._version or self._closed:
                return  # it was given up meanwhile
            if self._connection is not None:
                net.close(self._connection)
            self._connection = None
            self._decided = False
        self._broken(target.name, error)

    def _pop(self, frame: Frame | None) -> None:
        with self._changed:
            if frame is None or not self._queue or self._queue[0] is not frame:
                return
            self._queue.popleft()
            self._changed.notify_all()
        if frame.last and self._end is None:
            self._end = frame  # dropped, for we are the last: whoever is tied on later wants it
        else:
            frame.release()
