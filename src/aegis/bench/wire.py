"""What goes over the wire: the bytes of a request, and its answer with the time of every event. Pure."""

from __future__ import annotations

from array import array
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from aegis.api.http import authorization
from aegis.api.sse import DONE, EventReader
from aegis.bench.response import BadResponse, ResponseReader

if TYPE_CHECKING:
    from aegis.api.targets import Target

OK: Final = HTTPStatus.OK.value  # an int: it is looked at for every event
ERROR_LETTERS: Final = 200
ERROR: Final = b'{"error"'
# How a chunk of one event begins, by its length with all that frames it, and how it ends.
FRAMES: Final = {size + len(b"%x\r\n\r\n" % size): b'%x\r\ndata: {"id"' % size for size in range(20, 2048)}
END: Final = b"}\n\n\r\n"


class Usage(Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Event(Struct):
    """What matters of the last events of a stream."""

    choices: list[msgspec.Raw] = []
    usage: Usage | None = None


class Failed(Exception):
    """A request got no whole answer; the text says why."""


class Answer:
    """A streamed answer as it comes; its times are those of its events with a choice, once it is whole."""

    __slots__ = ("_between", "_body", "_chunk", "_events", "_last", "response", "times", "usage")

    def __init__(self) -> None:
        self.times = array("d")
        self.usage: Usage | None = None
        self.response = ResponseReader()
        self._events = EventReader()
        self._between = False  # a chunk and an event begin with what comes next
        self._last = b""  # event
        self._chunk = b""  # that holds the last event, where it came as `is_event` says
        self._body: list[bytes] = []

    def feed(self, now: float, data: bytes) -> bool:
        """Take bytes that came now; tell whether the answer is whole.

        Raises:
            Failed: the server says that it failed, or does not speak HTTP.
        """
        if self._between and is_event(data):
            self._chunk = data
            self.times.append(now)
            return False
        return self._feed_any(now, data)

    def _feed_any(self, now: float, data: bytes) -> bool:
        response = self.response
        try:
            body = response.feed(data)
        except BadResponse as error:
            raise Failed(str(error)) from None
        if response.status == OK:
            for event in self._events.feed(body):
                if event.startswith(ERROR):
                    raise Failed(_reason(event))
                if event != DONE:
                    self._last, self._chunk = event, b""
                    self.times.append(now)
            self._between = response.between_chunks and self._events.between_events
        elif body:
            self._body.append(body)
        if response.done:
            self._finish()
        return response.done

    def end(self) -> bool:
        """Tell whether the answer is whole, now that its connection is closed.

        Raises:
            Failed: as `feed`.
        """
        whole = self.response.end()
        if whole:
            self._finish()
        return whole

    def _finish(self) -> None:
        """Take the usage out of what came last; only now is JSON read.

        Raises:
            Failed: there was no event with a choice.
        """
        status = self.response.status
        if status != OK:
            raise Failed(f"HTTP {status}: {_reason(b''.join(self._body))}")
        event = event_of(self._chunk) if self._chunk else self._last
        try:
            last = msgspec.json.decode(event, type=Event) if event else Event()
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Failed(f"an event that is no JSON: {event[:ERROR_LETTERS]!r}") from None
        self.usage = last.usage
        if self.times and not last.choices:
            self.times.pop()
        if not self.times:
            raise Failed("the answer holds no event with a choice")


def is_event(chunk: bytes) -> bool:
    """Tell whether bytes are one chunk with one event of one line that is no error, as servers send nearly all of them.

    The readers would find the same, at four times the cost.
    """
    size = len(chunk)
    frame = FRAMES.get(size)
    return (
        frame is not None
        and chunk.startswith(frame)
        and chunk.endswith(END)
        and chunk.find(b"\n", len(frame)) == size - 4
        and chunk.find(b"\r", len(frame)) == size - 2
    )


def event_of(chunk: bytes) -> bytes:
    """Return the event in what `is_event`."""
    return chunk[chunk.index(b"{") : -4]


def request_head(target: Target, path: str, api_key: str | None) -> bytes:
    """Return what stands before the length of a request's body."""
    fields = {
        "Host": target.address,
        "Accept": "text/event-stream",
        "Content-Type": "application/json",
        **authorization(api_key),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: ".encode("ascii", "replace")


def request(head: bytes, body: dict[str, Any]) -> bytes:
    """Return the bytes of a request."""
    data = msgspec.json.encode(body)
    return b"%b%d\r\n\r\n%b" % (head, len(data), data)


def _reason(body: bytes) -> str:
    """Return the message of an error in any of the forms that engines have, else its beginning."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())[:ERROR_LETTERS]
