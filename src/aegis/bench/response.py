"""One HTTP/1.1 response out of bytes as they come. Pure.

A load generator reads one kind of response from servers that it is told of, so it needs little of HTTP; and without
aiohttp's streams an event costs it a third (`benchmarks/loadgen.py`).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

END: Final = b"\r\n\r\n"
LONGEST_HEAD: Final = 1 << 16
WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class BadResponse(ValueError):
    """What came is no HTTP/1.1 response."""


class ResponseReader:
    """Reads one response; feeding it in any pieces gives the same body."""

    def __init__(self) -> None:
        self.status = 0  # 0: its head has not come yet
        self.done = False
        self.keep_alive = True
        self._rest = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body still to come, where its length was told

    @property
    def between_chunks(self) -> bool:
        """Whether a chunk begins with what comes next."""
        return self._chunked and not self._rest and not self.done

    def feed(self, data: bytes) -> bytes:
        """Return what of the body is there now; of a chunk all or nothing.

        Raises:
            BadResponse: it is none, or longer than it said.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not self.status:
            head, end, body = data.partition(END)
            if not end:
                if len(data) > LONGEST_HEAD:
                    raise BadResponse("a head without an end")
                self._rest = data
                return b""
            self._read_head(head)
            if self.status < HTTPStatus.OK:  # 100 Continue: the response comes after it
                self.status = 0
                return self.feed(body)
            data = body
        return self._chunks(data) if self._chunked else self._plain(data)

    def end(self) -> bool:
        """Tell whether the response is whole, now that its connection is closed."""
        if self.status and not self._chunked and self._left is None:
            self.done = True
        return self.done

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise BadResponse(f"not HTTP: {first[:60]!r}")
        self.status = int(rest[:3])
        self.keep_alive = version != b"HTTP/1.0"
        for line in lines:
            name, _, value = line.partition(b":")
            self._header(name.lower(), value.strip().lower())
        if self.status in WITHOUT_BODY:
            self._left = 0
        if not self._chunked:
            self.done = self._left == 0
            self.keep_alive = self.keep_alive and self._left is not None

    def _header(self, name: bytes, value: bytes) -> None:
        if name == b"transfer-encoding":
            self._chunked = value == b"chunked"
        elif name == b"content-length":
            if not value.isdigit():
                raise BadResponse(f"content-length {value[:20]!r}")
            self._left = int(value)
        elif name == b"connection":
            self.keep_alive = value != b"close"

    def _plain(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        if len(data) > self._left:
            raise BadResponse("more than its content-length")
        self._left -= len(data)
        self.done = not self._left
        return data

    def _chunks(self, data: bytes) -> bytes:
        parts = []
        at = 0
        while not self.done:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            size = _size(data[at:line])
            end = line + 2 + size
            if not size:
                end = data.find(END, line)  # after trailers, where there are any
                self.done = end >= 0
                at = end + len(END) if self.done else at
                break
            if len(data) < end + 2:
                break
            if data[end : end + 2] != b"\r\n":
                raise BadResponse("a chunk without an end")
            parts.append(data[line + 2 : end])
            at = end + 2
        if self.done and at < len(data):
            raise BadResponse("more than its last chunk")
        self._rest = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        if digits.isalnum():
            return int(digits, 16)
    except ValueError:
        pass
    raise BadResponse(f"a chunk of length {line[:20]!r}")
