"""One answer of a server out of bytes as they come: where its head ends, and when it is whole. Pure.

The bytes are passed on as they are, so nothing is kept of a body and nothing is decoded.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

END: Final = b"\r\n\r\n"
LONGEST_HEAD: Final = 1 << 16
STATUS: Final = slice(9, 12)  # HTTP/1.1 200
WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
CONNECTION: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade"})
USUAL: Final = re.compile(
    rb"\r\n(?:connection:[ \t]*(?:keep-alive|close)|(?:keep-alive|proxy-connection|upgrade):[^\r]*)[ \t]*(?=\r)",
    re.IGNORECASE,
)
SIGN: Final = re.compile(rb"\r\n(?:connection|keep-alive|proxy-connection|upgrade):", re.IGNORECASE)


class BadAnswer(ValueError):
    """What came is no answer of HTTP/1.1, or more than one."""


class AnswerReader:
    """Reads the answers of one connection, one after the other; feeding one in any pieces gives the same bytes."""

    __slots__ = ("_answers", "_keep_alive", "_parser", "_rest", "done", "head", "interim", "status")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Expect the answer to another request."""
        self.status = 0  # 0: its head is not there yet
        self.head = b""  # with the empty line at its end
        self.done = False
        self.interim = b""  # heads of 1xx that came before it
        self._keep_alive = False
        self._answers = 0
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body, as they came, with what frames them.

        Raises:
            BadAnswer: nothing can be read after it.
        """
        if not self.status:
            data = self._read_head(data)
        elif self.done:
            raise BadAnswer("it goes on after its end")
        if data:
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade) as error:
                raise BadAnswer(str(error)) from None
        if self._answers > 1:
            raise BadAnswer("it goes on after its end")
        return data

    def end(self) -> bool:
        """Tell whether the answer is whole, now that its connection is closed."""
        if self.status and self.until_close:
            self.done = True
        return self.done

    @property
    def untouched(self) -> bool:
        """Whether not a byte has come."""
        return not (self.status or self._rest or self.interim)

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may be used again after the answer."""
        return self._keep_alive

    @property
    def until_close(self) -> bool:
        """Whether the answer ends with its connection."""
        if self._keep_alive or self.status in WITHOUT_BODY:
            return False
        head = self.head.lower()
        return b"\r\ncontent-length:" not in head and not _chunked(head)

    def passed_on(self) -> bytes:
        """Return the head without what is of its connection."""
        head = self.head
        if SIGN.search(head):
            head = USUAL.sub(b"", head)
            if SIGN.search(head):
                return _without_connection(self.head)
        return head

    def _read_head(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        while True:
            end = data.find(END) + len(END)
            if end < len(END):
                if len(data) > LONGEST_HEAD:
                    raise BadAnswer("a head without an end")
                self._rest = data
                return b""
            head, data = data[:end], data[end:]
            if not head.startswith(b"HTTP/1.") or not head[STATUS].isdigit():
                raise BadAnswer(f"not HTTP: {head[:40]!r}")
            status = int(head[STATUS])
            if status >= HTTPStatus.OK:
                break
            if status == HTTPStatus.SWITCHING_PROTOCOLS:
                raise BadAnswer("it switches to another protocol")
            if status != HTTPStatus.CONTINUE:  # what a client asked of the gateway itself
                self.interim += head
        self.head = head
        try:
            self._parser.feed_data(head)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise BadAnswer(str(error)) from None
        self.status = status
        return data

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._answers += 1

    def on_headers_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.done = True


def closing(head: bytes) -> bytes:
    """Return a head that tells the client that its connection ends with the answer."""
    return head[:-2] + b"Connection: close\r\n\r\n"


def _chunked(lower: bytes) -> bool:
    for line in lower.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"transfer-encoding" and value.strip().endswith(b"chunked"):
            return True
    return False


def _without_connection(head: bytes) -> bytes:
    """Return a head without the headers of its connection, and those that they name."""
    first, *lines = head[: -len(END)].split(b"\r\n")
    named = set(CONNECTION)
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"connection":
            named.update(each.strip().lower() for each in value.split(b","))
    named -= {b"content-length", b"transfer-encoding"}  # of the answer, whatever its connection says
    kept = [line for line in lines if line.partition(b":")[0].lower() not in named]
    return b"\r\n".join((first, *kept, b"", b""))
