"""Server-sent events out of bytes as they come, without a look at what they carry. Pure."""

from __future__ import annotations

from typing import Final

DONE: Final = b"[DONE]"
FIELD: Final = b"data:"


class EventReader:
    """Reads one stream; feeding it in any pieces gives the same events."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def between_events(self) -> bool:
        """Whether an event begins with what comes next."""
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are complete now; comments and other fields are no events.

        An event is complete with the empty line after it, so what a broken stream leaves half-sent is never returned.
        """
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            data = self._plain(data)
        *events, self._rest = data.split(b"\n\n")
        return [found for event in events if (found := _data_of(event)) is not None]

    def _plain(self, data: bytes) -> bytes:
        r"""Return the lines with `\n` at their ends; a `\r` whose `\n` may still come stays."""
        last = data.endswith(b"\r")
        plain = data[: len(data) - last].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return plain + data[len(data) - last :]


def _data_of(event: bytes) -> bytes | None:
    """Return the lines of data of an event, joined; None where there are none."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(FIELD)]
    return b"\n".join(lines) if lines else None
