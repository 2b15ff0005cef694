"""A node: takes frames, passes them on, hashes and writes them; does what the head says, and tells what came of it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from . import frames, net
from .check import clean, verify
from .items import BLOCK, Item, parse, reason, shown
from .link import Link, Target
from .places import FOREIGN, Places, free_bytes, held_bytes, is_foreign, places_of, published, too_large
from .secret import Refused
from .store import Store, StoreError
from .streams import Stream, Writer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

BUFFERS = (
    40  # of a frame each: what may be between reading, writing and sending; more would leave the CPU's cache
)
WRITERS = min(
    4, max(2, len(os.sched_getaffinity(0)) // 4)
)  # those of one file wait for each other in the kernel
BEAT_SECONDS = 1.0
JOIN_SECONDS = 60.0  # for the head to be reached

Key = tuple[int, int]  # item, round


class Receiver:
    """The program of a node."""

    def __init__(self, secret: bytes, names: list[str], interface: str = "", suffix: str = "") -> None:
        self.secret, self.names, self.suffix = secret, names, suffix
        self.address = net.address_of(interface) if interface else ""
        self.pool = frames.Pool(BUFFERS)
        self.items: list[Item] = []
        self.stores: dict[int, Store] = {}
        self.streams: dict[Key, Stream] = {}
        self.writers = [Writer(self._failed, self._written) for _ in range(WRITERS)]
        self.talk: net.Talk

    def run(self, address: str, port: int) -> int:
        """Serve a head until it says goodbye; return the exit code.

        Raises:
            OSError: the head cannot be reached, or we cannot listen.
            Refused: the head does not know the secret.
        """
        self.talk = net.Talk(join(address, port, self.secret))
        own = self.address or self.talk.connection.getsockname()[0]
        listening = net.listen(own)
        net.serve(listening, self.secret, self._read)
        for writer in self.writers:
            writer.start()
        self.talk.send(say="hello", names=self.names, address=own, port=listening.getsockname()[1])
        threading.Thread(target=self._beat, daemon=True, name="beat").start()
        while True:
            messages = self.talk.read()
            if messages is None:
                return 1  # the head is gone: what is there stays, for the next run
            for message in messages:
                if message["do"] == "bye":
                    return 0
                self._do(message)

    def _do(self, message: dict[str, Any]) -> None:
        kind = message["do"]
        if kind == "list":
            self.items = parse(message["list"].encode("utf-8", "surrogateescape"))
            self._start(self._survey, message["items"])
        elif kind == "prepare":
            self._start(self._prepare, self.items[message["item"]])
        elif kind == "link":
            self._tie((message["item"], message["round"]), message["to"])
        elif kind == "missing":
            self._tell_missing(message["item"], "ready")
        elif kind == "over":
            stream = self.streams.pop((message["item"], message["round"]), None)
            if stream:
                stream.link.close()
        elif kind == "abandon":
            self._abandon(message["item"])
        elif kind in {"verify", "clean"}:
            self._start(self._check, self.items[message["item"]], verify if kind == "verify" else clean)

    @staticmethod
    def _start(work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True, name=work.__name__).start()

    # -- what is there

    def _survey(self, wanted: list[int]) -> None:
        """See what will not fit, before a byte moves: items that come later have what earlier ones leave."""
        left: dict[int, int] = {}
        for index in wanted:
            places = places_of(self.items[index], self.suffix)
            try:
                error = survey(places, left)
            except OSError as failure:
                error = reason(failure)
            if error:
                self.talk.send(say="failed", item=index, error=error)
        self.talk.send(say="surveyed")

    def _prepare(self, item: Item) -> None:
        store = self.stores[item.index] = Store(item, self.suffix)
        try:
            needed = store.prepare(lambda: self.talk.send(say="waiting", item=item.index))
        except (OSError, StoreError) as error:
            self._fail(store, reason(error))
            return
        if not needed:
            self.talk.send(say="complete", item=item.index)
        elif store.complete:
            self._publish(store)
        else:
            self._tell_missing(item.index, "ready")

    def _tell_missing(self, index: int, say: str, **more: Any) -> None:
        self.talk.send(say=say, item=index, missing=self.stores[index].missing, **more)

    def _check(self, item: Item, check: Callable[[Places], tuple[int, str]]) -> None:
        count, error = check(places_of(item, self.suffix))
        self.talk.send(say="checked", item=item.index, bytes=count, error=error)

    # -- what comes by

    def _tie(self, key: Key, to: list[Any] | None) -> None:
        stream = self.streams.get(key)
        if stream is None:
            about = {"item": key[0], "round": key[1]}
            link = Link(
                self.secret,
                lambda name: self.talk.send(say="linked", to=name, **about),
                lambda name, error: self.talk.send(say="broken", to=name, error=error, **about),
            )
            stream = self.streams[key] = Stream(self.stores[key[0]], link)
            link.start()
        stream.link.tie(Target(*to) if to else None)
        if not to:
            self.talk.send(say="linked", to=None, item=key[0], round=key[1])

    def _read(self, connection: socket.socket) -> None:
        """Take frames from one connection until it ends; others may bring the same."""
        try:
            while True:
                frame = frames.read(connection, self.pool)
                if frame is None:
                    return
                self._take(frame)
                frame.release()
        except (OSError, frames.FrameError):
            return  # the head ties the chain together again
        finally:
            net.close(connection)

    def _take(self, frame: frames.Frame) -> None:
        stream = self.streams.get(frame.key)
        if stream is None:
            return
        if frame.pieces:
            frame.hold()
            stream.begin()
            first = frame.pieces[0]  # all pieces of a block go the same way
            way = first.file + first.offset // BLOCK
            self.writers[way % WRITERS].jobs.put((stream, frame))
        stream.link.put(frame)
        if frame.last and stream.end():
            self._start(self._ended, frame.key, stream)

    def _written(self, stream: Stream, frame: frames.Frame) -> None:
        """Take note that a writer is done with a frame."""
        key = frame.key
        frame.release()
        if stream.finish():
            self._start(self._ended, key, stream)

    def _ended(self, key: Key, stream: Stream) -> None:
        if stream.store.error:
            return
        if stream.store.complete:
            self._publish(stream.store)
        else:
            self._tell_missing(key[0], "ended", round=key[1])

    def _publish(self, store: Store) -> None:
        try:
            store.publish()
        except (OSError, StoreError) as error:
            self._fail(store, reason(error))
        else:
            self.talk.send(say="published", item=store.item.index, bytes=store.received)

    def _fail(self, store: Store, error: str) -> None:
        if not store.error:
            store.error = error
            store.abandon()
            self.talk.send(say="failed", item=store.item.index, error=error)

    def _failed(self, stream: Stream, error: OSError) -> None:
        """Take note that a frame could not be written."""
        self._fail(stream.store, f"{shown(stream.store.places.destination)}: {error.strerror}")

    def _abandon(self, index: int) -> None:
        store = self.stores.get(index)
        if store and not store.closed:
            store.error = store.error or "abandoned"
            store.abandon()

    def _beat(self) -> None:
        """Tell once a second that we live, and who takes nothing from us."""
        while True:
            time.sleep(BEAT_SECONDS)
            blocked = [(*key, *stream.link.blocked) for key, stream in list(self.streams.items())]
            writing = max(writer.seconds for writer in self.writers)
            slow = [each for each in blocked if each[3] > BEAT_SECONDS]
            self.talk.send(say="beat", blocked=slow, writing=round(writing, 1))


def survey(places: Places, left: dict[int, int]) -> str:
    """Return why an item cannot be had here; take what it needs from what is left on its device.

    Raises:
        OSError: it cannot be seen.
    """
    if published(places):
        return ""
    if is_foreign(places):
        return f"{shown(places.destination)}: {FOREIGN}"
    need = places.item.size - held_bytes(places)
    device, free, _ = free_bytes(places.destination)
    left.setdefault(device, free)
    if need > left[device]:
        return too_large(places, need, left[device])
    left[device] -= need
    return ""


def join(address: str, port: int, secret: bytes) -> socket.socket:
    """Return a connection to the head, which may come up later than we do.

    Raises:
        OSError: it does not come.
        Refused: it does not know the secret.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return net.connect(address, port, secret)
        except Refused:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
