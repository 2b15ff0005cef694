"""One item on its way to the nodes that need it: the rounds of its stream, and what becomes of each node."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from . import blocks
from .frames import END, encode
from .link import Link
from .source import Source, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .items import Item
    from .nodes import Node

HEAD = ""  # its name as a member of a chain
TRIES = 4  # rounds for one node
TICK_SECONDS = 0.5


class Result:
    """What has become of an item on one node."""

    def __init__(self, *, ok: bool, skipped: bool = False, size: int = 0, error: str | None = None) -> None:
        self.ok, self.skipped, self.size, self.error = ok, skipped, size, error


class Round:
    """One stream down one chain of nodes."""

    def __init__(self, number: int, chain: list[Node], wanted: blocks.Ranges) -> None:
        self.number = number
        self.chain = chain  # in order; shrinks as nodes are lost
        self.wanted = wanted
        self.unlinked = {HEAD, *(node.name for node in chain)}
        self.silent = {node.name for node in chain}  # have not yet said what came of it
        self.started = False
        self.link: Link


class Staging(threading.Thread):
    """Stages one item. All that happens comes through one queue, so that one thing happens at a time."""

    def __init__(
        self,
        item: Item,
        nodes: list[Node],
        secret: bytes,
        stall_seconds: float,
        report: Callable[[Item, Node, Result], None],
    ) -> None:
        super().__init__(daemon=True, name=f"item {item.index}")
        self.item, self.nodes = item, {node.name: node for node in nodes}
        self.source = Source(item)
        self.inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.streamed = threading.Event()  # the next item may begin
        self.results: dict[str, Result] = {}
        self.total = 0  # bytes that this run sends
        self._secret, self._stall_seconds, self._report = secret, stall_seconds, report
        self._ready: dict[str, blocks.Ranges] = {}  # nodes that lack blocks and are in no chain
        self._asked = set(self.nodes)  # nodes from which an answer must come soon
        self._tries: dict[str, int] = {}
        self._why: dict[str, str] = {}
        self._round: Round | None = None  # that runs
        self._rounds = 0
        self._sent = 0

    @property
    def sent(self) -> int:
        """Bytes that the head has sent."""
        current = self._round
        return self._sent + (current.link.sent if current is not None and current.started else 0)

    def tell(self, name: str, message: dict[str, Any]) -> None:
        """Take note of what a node says."""
        self.inbox.put((name, message))

    def run(self) -> None:
        while not self.inbox.empty():  # what the survey found
            self._hear(*self.inbox.get())
        try:
            self.source.check()
        except SourceError as error:
            self._abandon(str(error))
        self._ask_all()
        while len(self.results) < len(self.nodes):
            if self._round is None and not self._asked:
                if self._ready:
                    self._begin()
                else:
                    self.streamed.set()  # only nodes are left that wait for another job
            try:
                name, message = self.inbox.get(timeout=TICK_SECONDS)
            except queue.Empty:
                self._look_for_stalls()
            else:
                self._hear(name, message)
        self._over()
        self.streamed.set()

    def _ask_all(self) -> None:
        for name, node in self.nodes.items():
            if node.gone:
                self._settle(name, Result(ok=False, error=node.gone))
            elif name not in self.results:
                node.send(do="prepare", item=self.item.index)

    # -- what nodes say

    def _hear(self, name: str, message: dict[str, Any]) -> None:
        kind = message["say"]
        if kind == "sent":
            self.streamed.set()
        elif kind == "source":
            self._abandon(message["error"])
        elif kind == "gone":
            self._settle(name, Result(ok=False, error=message["error"]))
            self._drop(name)
        elif "round" in message:
            if self._round is not None and message["round"] == self._round.number:
                self._hear_of_round(self._round, name, message)
        elif name not in self.results:
            self._hear_of_node(name, message)

    def _hear_of_node(self, name: str, message: dict[str, Any]) -> None:
        kind = message["say"]
        if kind == "failed":  # it still passes on what it gets
            self._settle(name, Result(ok=False, error=message["error"]))
        elif kind == "complete":
            self._settle(name, Result(ok=True, skipped=True))
        elif kind == "published":
            self._settle(name, Result(ok=True, size=message["bytes"]))
        elif kind == "waiting":
            self._asked.discard(name)
        elif kind == "ready":
            self._asked.discard(name)
            self._lacks(name, message["missing"])

    def _hear_of_round(self, current: Round, name: str, message: dict[str, Any]) -> None:
        kind = message["say"]
        if kind == "linked":
            self._linked(current, name)
        elif kind == "broken":
            self._unlink(name, message["to"], message["error"])
        elif kind == "ended" and name not in self.results:
            current.silent.discard(name)
            self._lacks(name, message["missing"])
            self._end_round()

    def _unlink(self, before: str, name: str, error: str) -> None:
        """Leave a node that could not be sent to out of this round; ask it what the next one has to bring."""
        current = self._round
        if current is None or all(node.name != name for node in current.chain):
            return
        self._why[name] = f"{before or 'the head'} could not send to it: {error}"
        if name not in self.results:
            self._asked.add(name)
            self.nodes[name].send(do="missing", item=self.item.index)
        self._drop(name)

    def _lacks(self, name: str, told: object) -> None:
        try:
            missing = blocks.checked(told, self.item.blocks)
        except ValueError as error:
            self._settle(name, Result(ok=False, error=str(error)))
            return
        if self._tries.get(name, 0) >= TRIES:
            why = self._why.get(name, "what came did not have the hash that was sent")
            count = sum(stop - start for start, stop in missing)
            self._settle(name, Result(ok=False, error=f"{count} blocks did not arrive: {why}"))
        else:
            self._ready[name] = missing

    def _settle(self, name: str, result: Result) -> None:
        if name in self.results:
            return
        self.results[name] = result
        self._asked.discard(name)
        self._ready.pop(name, None)
        self._report(self.item, self.nodes[name], result)
        if self._round is not None:
            self._round.silent.discard(name)
            self._end_round()

    # -- rounds

    def _begin(self) -> None:
        chain = [node for name, node in self.nodes.items() if name in self._ready]
        if self._rounds:
            chain.reverse()  # what could not be reached from one side may be from the other
        wanted = blocks.union(self._ready.values())
        for node in chain:
            self._tries[node.name] = self._tries.get(node.name, 0) + 1
        self._ready.clear()
        self._rounds += 1
        self.total += self.item.bytes_of(wanted)
        current = self._round = Round(self._rounds, chain, wanted)
        about = {"round": current.number}
        current.link = Link(
            self._secret,
            lambda name: self.tell(HEAD, {"say": "linked", "to": name, **about}),
            lambda name, error: self.tell(HEAD, {"say": "broken", "to": name, "error": error, **about}),
        )
        current.link.start()
        members: list[Node | None] = [None, *chain, None]
        for before, after in zip(members, members[1:]):
            self._tie(current, before, after)

    def _tie(self, current: Round, before: Node | None, node: Node | None) -> None:
        if before is None:
            current.link.tie(node.target if node else None)
        else:
            to = list(node.target) if node else None
            before.send(do="link", item=self.item.index, round=current.number, to=to)

    def _linked(self, current: Round, name: str) -> None:
        """Begin to send when every node knows where to."""
        current.unlinked.discard(name)
        if not current.unlinked and not current.started:
            current.started = True
            threading.Thread(target=self._send, args=(current,), daemon=True, name="send").start()

    def _send(self, current: Round) -> None:
        key = (self.item.index, current.number)
        try:
            for frame in self.source.frames(key, current.wanted):
                if self._round is not current:
                    return
                current.link.put(frame)
                frame.release()
        except SourceError as error:
            self.tell(HEAD, {"say": "source", "error": str(error)})
            return
        current.link.put(encode(END, key, [], []))
        self.tell(HEAD, {"say": "sent"})

    def _drop(self, name: str) -> None:
        """Take a node out of the chain, and tie its neighbours together."""
        current = self._round
        if current is None:
            return
        at = next((n for n, node in enumerate(current.chain) if node.name == name), None)
        if at is None:
            return
        del current.chain[at]
        current.silent.discard(name)
        before = current.chain[at - 1] if at else None
        after = current.chain[at] if at < len(current.chain) else None
        self._tie(current, before, after)
        if at == 0 and after is None:
            self._linked(current, HEAD)
        self._linked(current, name)
        self._end_round()

    def _end_round(self) -> None:
        current = self._round
        if current is not None and not current.silent:
            self._over()

    def _over(self) -> None:
        current, self._round = self._round, None
        if current is None:
            return
        self._sent += current.link.sent
        current.link.close()
        for node in self.nodes.values():
            node.send(do="over", item=self.item.index, round=current.number)

    def _abandon(self, error: str) -> None:
        for name, node in self.nodes.items():
            if name not in self.results:
                node.send(do="abandon", item=self.item.index)
                self._settle(name, Result(ok=False, error=error))

    def _look_for_stalls(self) -> None:
        """Give up the node that takes nothing; those before it are blocked only by it."""
        current = self._round
        if current is None:
            return
        key, links = (self.item.index, current.number), [("", current.link.blocked)]
        for node in current.chain:
            if node.writing > self._stall_seconds:
                error = f"a write has taken {node.writing:.0f} s"
                self._hear(node.name, {"say": "failed", "error": error})
                self._drop(node.name)
                return
            links += [(node.name, (to, since)) for *of, to, since in node.blocked if tuple(of) == key]
        stalled = [(name, to, since) for name, (to, since) in links if since > self._stall_seconds]
        if stalled:
            name, to, since = stalled[-1]
            error = f"it took nothing for {since:.0f} s"
            self.tell(name, {"say": "broken", "to": to, "error": error, "round": current.number})


def seconds_since(start: float) -> float:
    """Return the seconds since a time, rounded for a message."""
    return round(time.monotonic() - start, 3)
