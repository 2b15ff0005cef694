"""The head: reads the sources, tells the nodes what to do, and prints what came of it as JSON lines."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from . import net
from .items import short
from .nodes import Node, Nodes
from .staging import Result, Staging, seconds_since

if TYPE_CHECKING:
    from .items import Item

PROGRESS_SECONDS = 1.0


class Head:
    """The program that has the sources."""

    def __init__(
        self, listing: bytes, items: list[Item], names: list[str], secret: bytes, stall_seconds: float
    ) -> None:
        self.items, self.secret, self.stall_seconds = items, secret, stall_seconds
        self._listing = listing.decode("utf-8", "surrogateescape")
        self.nodes = Nodes(names, stall_seconds, self._heard)
        self._stagings: dict[int, Staging] = {}
        self._settled: dict[tuple[int, str], Result] = {}
        self._early: list[tuple[str, dict[str, Any]]] = []  # what the survey found
        self._surveyed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._checked: queue.SimpleQueue[tuple[Node, dict[str, Any]]] = queue.SimpleQueue()
        self._printing = threading.Lock()
        self._start = time.monotonic()

    def listen(self, address: str, port: int) -> None:
        """Open the port and say so.

        Raises:
            OSError: it cannot be opened.
        """
        listening = net.listen(address, port)
        net.serve(listening, self.secret, self.nodes.welcome)
        self.nodes.start()
        self._print(event="listening", address=address, port=listening.getsockname()[1])

    def stage(self, join_seconds: float) -> int:
        """Stage all items, in the list's order; return the exit code."""
        self.nodes.wait_for_all(join_seconds)
        self._start = time.monotonic()
        self._survey()
        threading.Thread(target=self._tell_progress, daemon=True, name="progress").start()
        for item in self.items:
            staging = Staging(item, self._needing(item), self.secret, self.stall_seconds, self._report)
            self._hand_over(staging)
            staging.start()
            staging.streamed.wait()  # the last blocks are still written while the next item is read
        for staging in self._stagings.values():
            staging.join()
        return self._end(sum(staging.source.bytes_read for staging in self._stagings.values()))

    def check(self, task: str, join_seconds: float) -> int:
        """Let all nodes hash again, or remove, what was staged; return the exit code."""
        self.nodes.wait_for_all(join_seconds)
        self._start = time.monotonic()
        asked = {(item.index, node.name) for item in self.items for node in self._needing(item)}
        for node in self.nodes.all.values():
            indices = [item.index for item in self.items if (item.index, node.name) in asked]
            node.send(do="list", list=self._listing, items=[])
            for index in indices:
                node.send(do=task, item=index)
        for node in self.nodes.all.values():
            if node.gone:
                self._checked.put((node, {"say": "gone", "error": node.gone}))
        total = 0
        while asked:
            node, message = self._checked.get()
            about = [key for key in asked if key[1] == node.name and message.get("item", key[0]) == key[0]]
            for key in sorted(about):
                asked.discard(key)
                error = message["error"] or None
                size = message.get("bytes", 0)
                total += size
                self._report(self.items[key[0]], node, Result(ok=error is None, size=size, error=error))
        return self._end(total)

    # -- nodes

    def _needing(self, item: Item) -> list[Node]:
        wanted = set(item.hosts)
        near = {short(name) for name in wanted}
        return [
            node
            for node in self.nodes.all.values()
            if not wanted or node.name in wanted or short(node.name) in near
        ]

    def _survey(self) -> None:
        """Hear from all what does not fit on them, before a byte moves."""
        awaited = {node.name for node in self.nodes.all.values() if not node.gone}
        needing = {item.index: {node.name for node in self._needing(item)} for item in self.items}
        for name in awaited:
            indices = [index for index, names in needing.items() if name in names]
            self.nodes.all[name].send(do="list", list=self._listing, items=indices)
        while awaited:
            awaited.discard(self._surveyed.get())

    def _heard(self, node: Node, message: dict[str, Any]) -> None:
        kind = message["say"]
        if kind in {"surveyed", "gone"}:
            self._surveyed.put(node.name)
        if kind in {"checked", "gone"}:
            self._checked.put((node, message))
        index = message.get("item")
        if kind == "gone":
            for staging in list(self._stagings.values()):
                if node.name in staging.nodes:
                    staging.tell(node.name, message)
        elif index in self._stagings:
            self._stagings[index].tell(node.name, message)
        elif kind == "failed":
            self._early.append((node.name, message))

    def _hand_over(self, staging: Staging) -> None:
        self._stagings[staging.item.index] = staging
        for name, message in self._early:
            if message["item"] == staging.item.index:
                staging.tell(name, message)

    # -- what is printed

    def _report(self, item: Item, node: Node, result: Result) -> None:
        self._settled[item.index, node.name] = result
        self._print(
            event="node",
            item=item.index,
            host=node.name,
            ok=result.ok,
            skipped=result.skipped,
            bytes=result.size,
            error=result.error,
        )

    def _tell_progress(self) -> None:
        while True:
            time.sleep(PROGRESS_SECONDS)
            for staging in list(self._stagings.values()):
                if staging.is_alive():
                    self._progress(staging)

    def _progress(self, staging: Staging) -> None:
        self._print(
            event="progress",
            item=staging.item.index,
            bytes=staging.sent,
            total=staging.total,
            nodes_done=len(staging.results),
            nodes=len(staging.nodes),
            seconds=seconds_since(self._start),
        )

    def _end(self, count: int) -> int:
        for node in self.nodes.all.values():
            node.send(do="bye")
        seconds = seconds_since(self._start)
        self._print(event="done", seconds=seconds, bytes_read=count, rate=round(count / max(seconds, 1e-3)))
        return 0 if all(result.ok for result in self._settled.values()) else 1

    def _print(self, **event: Any) -> None:
        with self._printing:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()
