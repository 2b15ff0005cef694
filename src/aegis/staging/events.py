"""What the programs that stage print: one JSON object a line, the same from MPI and TCP."""

from __future__ import annotations

from msgspec import DecodeError, Struct, json


class Listening(Struct, frozen=True, kw_only=True, tag_field="event", tag="listening"):
    """The head of the TCP stager can be reached."""

    address: str  # of the interface that was named; "": all of the node's
    port: int


class Progress(Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """How far an item is."""

    item: int  # its place in the list file
    bytes: int  # sent so far
    total: int  # bytes to send
    nodes_done: int  # for which it is decided, well or badly
    nodes: int  # that need it
    seconds: float  # since the start


class NodeResult(Struct, frozen=True, kw_only=True, tag_field="event", tag="node"):
    """A node has an item, or will not get it."""

    item: int
    host: str
    ok: bool
    skipped: bool = False  # it was there already
    bytes: int = 0  # that came to the node
    error: str | None = None


class Done(Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """All is decided."""

    seconds: float
    bytes_read: int = 0  # of the sources, or by --verify of what is staged
    rate: float = 0.0  # bytes/s


Event = Listening | Progress | NodeResult | Done
_EVENTS: json.Decoder[Event] = json.Decoder(Event)


def read_event(line: str | bytes) -> Event | None:
    """Return the event of a line; None where a launcher or a library has printed something of its own."""
    try:
        return _EVENTS.decode(line)
    except DecodeError:
        return None
