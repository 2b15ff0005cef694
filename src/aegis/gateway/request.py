"""Requests of clients out of bytes as they come. Pure.

llhttp, which Node.js is built on too, refuses what two servers could read in two ways (two lengths, a length beside
chunks, bare line feeds, folded lines). What is left to refuse here are sizes, and what a gateway cannot do.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from aegis.gateway.refusal import Refusal

CODES: Final = {413: "body_too_long", 431: "head_too_long"}  # of a status, for programs
Stage = Literal["idle", "head", "body"]
Headers = list[tuple[bytes, bytes]]

# Headers of the connection, and those that a request has a field for.
OWN: Final = frozenset(
    {
        *(b"authorization", b"connection", b"content-length", b"content-type", b"expect", b"host"),
        b"http2-settings",
        *(b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
SINGLE: Final = frozenset({b"authorization", b"content-type", b"host"})
OFFER: Final = frozenset({b"connection", b"http2-settings", b"upgrade"})
SMALL: Final = 1 << 16  # bytes of a body that is rather copied than sent apart


class Refused(Exception):
    """A request that gets a refusal for its answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _refused(status: int, message: str) -> Refused:
    return Refused(Refusal(status=status, message=message, code=CODES.get(status, "bad_request")))


class Request:
    """One request, whole."""

    __slots__ = (
        *(
            "authorization",
            "body",
            "content_type",
            "headers",
            "host",
            "keep_alive",
            "method",
            "minor",
            "path",
            "url",
        ),
    )

    def __init__(
        self,
        method: bytes,
        url: bytes,
        own: dict[bytes, bytes],
        headers: Headers,
        *,
        minor: int,
        keep_alive: bool,
    ) -> None:
        self.method = method
        # What was sent, with its query; and as to a server that is no proxy, where it was http://host/path.
        self.url = url if url.startswith(b"/") else b"/" + url.partition(b"://")[2].partition(b"/")[2]
        self.path = self.url.partition(b"?")[0].partition(b"#")[0]
        self.minor = minor  # of the HTTP version: 0 or 1
        self.keep_alive = keep_alive  # the client wants to ask more
        self.headers = headers  # that are passed on, besides these three
        self.host = own.get(b"host", b"")
        self.authorization = own.get(b"authorization")
        self.content_type = own.get(b"content-type", b"")
        self.body = b""

    def to_server(self, key: bytes | None, *, guarded: bool) -> tuple[bytes, ...]:
        """Return what a server is sent, in pieces: the client's request without what is of its connection.

        Args:
            key: that servers are asked with.
            guarded: what the client presents is for the gateway alone.
        """
        lines = [b"%b %b HTTP/1.%d\r\nHost: %b" % (self.method, self.url, self.minor, self.host)]
        lines += [b"%b: %b" % header for header in self.headers]
        if self.content_type:
            lines.append(b"Content-Type: " + self.content_type)
        if key is not None:
            lines.append(b"Authorization: Bearer " + key)
        elif self.authorization is not None and not guarded:
            lines.append(b"Authorization: " + self.authorization)
        size = len(self.body)
        lines.append(b"Content-Length: %d\r\n\r\n" % size)
        head = b"\r\n".join(lines)
        return (head + self.body,) if size < SMALL else (head, self.body)

    def to_page(self) -> bytes:
        """Return the request for the server of pages in this process, which is to close the connection after it."""
        headers = [(b"Host", self.host), *self.headers, (b"Connection", b"close")]
        if self.content_type:
            headers.append((b"Content-Type", self.content_type))
        if self.authorization is not None:
            headers.append((b"Authorization", self.authorization))
        if self.body:
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        return head_of(self.method, self.url, self.minor, headers) + self.body


def head_of(method: bytes, url: bytes, minor: int, headers: Headers) -> bytes:
    """Return a request line and headers."""
    first = b"%b %b HTTP/1.%d" % (method, url, minor)
    return b"\r\n".join([first, *(b"%b: %b" % header for header in headers), b"\r\n"])


class RequestReader:
    """Reads requests, one after the other; feeding them in any pieces gives the same."""

    def __init__(self, max_head: int, max_body: int) -> None:
        self.ready: deque[Request] = deque()
        self.stage: Stage = "idle"
        self.number = 0  # of the request that is read now
        self.received = 0  # bytes of its body
        self.expects = False  # it waits for a word before it sends its body
        self._max_head, self._max_body = max_head, max_body
        self._parser = HttpRequestParser(self)
        self._refused: Refused | None = None
        self._beside = 0  # bytes since the last that were a body's
        self._head = 0  # bytes of this head
        self._url = b""
        self._own: dict[bytes, bytes] = {}
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._request: Request | None = None  # once its head is there

    def feed(self, data: bytes) -> None:
        """Read on; whole requests are `ready`.

        Raises:
            Refused: what comes is wrong, too long, or not done here; nothing can be read after it.
        """
        self._beside += len(data)
        while data:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                data = self._without_offer() + data[upgrade.args[0] :]
            except HttpParserError as error:
                raise self._refused or _refused(400, f"this is not HTTP/1.1: {error}") from None
        if self._beside > self._max_head and self.stage != "idle":
            if self.stage == "head":
                raise self._long_head()
            raise _refused(400, "too much between the pieces of the body")

    def _without_offer(self) -> bytes:
        """Return the head of a request that offers another protocol without the offer, to be read again.

        Raises:
            Refused: the client wants a tunnel.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise _refused(405, "this is no proxy for other servers")
        self._parser = HttpRequestParser(self)
        own = [header for header in self._own.items() if header[0] not in OFFER]
        if b"close" in self._own[b"connection"].lower():
            own.append((b"connection", b"close"))
        return head_of(method, self._url, 1, own + self._headers)

    def _long_head(self) -> Refused:
        return _refused(431, f"the head is longer than {self._max_head:,} bytes")

    def _refuse(self, why: Refused) -> Refused:
        """Keep for `feed` what the parser would hide."""
        self._refused = why
        return why

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.stage = "head"
        self.number += 1
        self.received = self._head = 0
        self._url, self._own, self._headers, self._body = b"", {}, [], []
        self._request = None

    def on_url(self, piece: bytes) -> None:
        self._url += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is not None:
            return  # after the body: of the chunks, which the server does not see
        self._head += len(name) + len(value) + 4  # `: ` and CR LF
        if self._head > self._max_head:
            raise self._refuse(self._long_head())
        lower = name.lower()
        if lower not in OWN:
            self._headers.append((name, value))
        elif lower not in self._own:
            self._own[lower] = value.rstrip()
        elif lower in SINGLE:
            raise self._refuse(_refused(400, f"two headers {name.decode()!r}"))
        else:
            self._own[lower] += b"," + value

    def on_headers_complete(self) -> None:
        own, parser = self._own, self._parser
        version = parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            raise self._refuse(_refused(505, f"HTTP/{version} is not spoken here"))
        self._check(own, version)
        if b"connection" in own:
            named = {name.strip().lower() for name in own[b"connection"].split(b",")}
            self._headers = [header for header in self._headers if header[0].lower() not in named]
        self._request = Request(
            parser.get_method(),
            self._url,
            own,
            self._headers,
            minor=int(version[2]),
            keep_alive=version == "1.1" and parser.should_keep_alive(),
        )
        self._beside = 0
        self.stage = "body"

    def _check(self, own: dict[bytes, bytes], version: str) -> None:
        """Refuse what cannot be passed on.

        Raises:
            Refused: for one of these reasons.
        """
        if own.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise self._refuse(_refused(501, "the only transfer coding is chunked"))
        if version == "1.0" and b"transfer-encoding" in own:
            raise self._refuse(_refused(400, "HTTP/1.0 knows no transfer coding"))
        if version == "1.1" and b"host" not in own:
            raise self._refuse(_refused(400, "no Host header"))
        if int(own.get(b"content-length", 0)) > self._max_body:
            raise self._refuse(self._long_body())
        if b"expect" in own:
            if own[b"expect"].lower() != b"100-continue":
                raise self._refuse(_refused(417, "nothing can be expected but 100-continue"))
            self.expects = version == "1.1"

    def _long_body(self) -> Refused:
        return _refused(413, f"the body is longer than {self._max_body:,} bytes")

    def on_body(self, piece: bytes) -> None:
        self._beside = 0
        self.expects = False
        self.received += len(piece)
        if self.received > self._max_body:
            raise self._refuse(self._long_body())
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() or self._request is None:
            return  # its head is read again, without the offer
        body = self._body
        self._request.body = body[0] if len(body) == 1 else b"".join(body)
        self.ready.append(self._request)
        self.expects = False
        self._beside = 0
        self._body = []
        self.stage = "idle"
