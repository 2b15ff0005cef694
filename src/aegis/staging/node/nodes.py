"""The nodes as the head sees them: who has come, who lives, and what they say."""

from __future__ import annotations

import selectors
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from . import net
from .items import short
from .link import Target

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LOST_SECONDS = 30.0  # without a sign of life


class Node:
    """One node that is expected, or has come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.talk: net.Talk | None = None
        self.address, self.port = "", 0
        self.seen = 0.0
        self.gone = ""  # why
        self.blocked: list[list[Any]] = []  # item, round, next node, seconds: what it cannot pass on
        self.writing = 0.0  # seconds that one write has taken so far

    @property
    def target(self) -> Target:
        """Where its predecessor sends to."""
        return Target(self.name, self.address, self.port)

    def send(self, **message: Any) -> None:
        """Tell it something, if it is there."""
        if self.talk is not None and not self.gone:
            self.talk.send(**message)


class Nodes:
    """All nodes: reads what they say in one thread, and tells it on."""

    def __init__(
        self, names: list[str], lost_seconds: float, heard: Callable[[Node, dict[str, Any]], None]
    ) -> None:
        self.all = {name: Node(name) for name in names}
        self._lost_seconds = lost_seconds
        self._heard = heard
        self._selector = selectors.DefaultSelector()
        self.changed = threading.Condition()

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, daemon=True, name="nodes").start()

    def welcome(self, connection: socket.socket) -> None:
        """Take a connection that knows the secret; who it is comes with its first message."""
        self._selector.register(connection, selectors.EVENT_READ, (net.Talk(connection), []))

    def wait_for_all(self, seconds: float) -> None:
        """Wait until all have come; those who do not come in time are lost."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while any(node.talk is None and not node.gone for node in self.all.values()):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self.changed.wait(left)
            late = [node for node in self.all.values() if node.talk is None and not node.gone]
        for node in late:
            self.lose(node, f"its stager did not come within {seconds:g} s")

    def give_up(self, name: str, why: str) -> None:
        """Wait no longer for a node that has not come."""
        node = self.all.get(name)
        if node is not None and node.talk is None:
            self.lose(node, why)

    def lose(self, node: Node, why: str) -> None:
        """Give a node up."""
        with self.changed:
            if node.gone:
                return
            node.gone = why
            self.changed.notify_all()
        if node.talk is not None:
            net.close(node.talk.connection)
        self._heard(node, {"say": "gone", "error": why})

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(0.5):
                self._read(key)
            now = time.monotonic()
            for node in self.all.values():
                if node.talk is not None and not node.gone and now - node.seen > self._lost_seconds:
                    self.lose(node, f"no sign of life for {self._lost_seconds:g} s")

    def _read(self, key: selectors.SelectorKey) -> None:
        talk, owner = key.data
        messages = talk.read()
        if messages is None:
            self._selector.unregister(key.fileobj)
            net.close(talk.connection)
            for node in owner:
                self.lose(node, "its stager ended, or the connection to it broke")
            return
        for message in messages:
            if not owner:
                node = self._introduce(talk, message)
                if node is None:
                    self._selector.unregister(key.fileobj)
                    net.close(talk.connection)
                    return
                owner.append(node)
            else:
                owner[0].seen = time.monotonic()
                self._take(owner[0], message)

    def _take(self, node: Node, message: dict[str, Any]) -> None:
        if message.get("say") == "beat":
            node.blocked, node.writing = message["blocked"], message["writing"]
        else:
            self._heard(node, message)

    def _introduce(self, talk: net.Talk, message: dict[str, Any]) -> Node | None:
        """Return the expected node that this is; a scheduler may know it by a longer or shorter name."""
        names = [str(name) for name in message.get("names", [])]
        near = {short(name) for name in names}
        free = [node for node in self.all.values() if node.talk is None and not node.gone]
        found = [node for node in free if node.name in names]
        found += [node for node in free if short(node.name) in near]
        if not found:
            print(f"aegis stager: nobody expects {' or '.join(names)}", file=sys.stderr)
            return None
        node = found[0]
        with self.changed:
            node.talk, node.seen = talk, time.monotonic()
            node.address, node.port = str(message["address"]), int(message["port"])
            self.changed.notify_all()
        self._heard(node, {"say": "hello"})
        return node
