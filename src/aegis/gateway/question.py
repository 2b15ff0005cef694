"""What the gateway must know of a request: its model, whether it streams, and which conversation it continues.

All else in a body is for the engine alone. Nothing large is copied: messages are looked at where they lie.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import msgspec
from msgspec import Raw, Struct

from aegis.errors import AegisError
from aegis.gateway.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FIRST, LAST = (
    4,
    12,
)  # beginnings kept of a long conversation: what it shares with others, what its next turn continues
FIRST_BLOCK: Final = 64  # bytes of a prompt's shortest beginning: 16 tokens, the least that engines cache
SAMPLE: Final = 1 << 16  # bytes looked at on either end of a large message (an image)
TRUE: Final = frozenset({"true", "1", "yes", "on", "t", "y"})  # what the engines take for it
WITHOUT_PREFIXES: Final = ("/embeddings", "/rerank", "/score", "/pooling", "/classify")  # nothing to continue
FIELD: Final = re.compile(
    rb'content-disposition:[^\r\n]*;\s*name="?(model|stream)"?[ \t]*(?:\r\n[^\r\n]+)*\r\n\r\n([^\r\n]{0,512})\r\n',
    re.IGNORECASE,
)


class Question(Struct, frozen=True):
    """What is known of a request."""

    model: str
    stream: bool = False
    include_usage: bool = False  # a stream's last event tells the tokens
    prefixes: tuple[int, ...] = ()  # hashes of ever longer beginnings


class BadQuestion(AegisError):
    """A request that no engine could take; `refusal` is the answer to it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(status=400, message=message, param=param)


class _Fields(Struct):
    model: Any = None
    stream: Any = None
    stream_options: Any = None


class _Body(_Fields):
    messages: list[Raw] = []
    prompt: Raw = Raw()
    input: Raw = Raw()
    instructions: Raw = Raw()  # of /v1/responses
    system: Raw = Raw()  # of /v1/messages


_body = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(_Fields)
_items = msgspec.json.Decoder(list[Raw])


def read(path: str, body: bytes, content_type: str = "") -> Question:
    """Read a request's body.

    Args:
        path: of the request, without its query.
        body: the whole of it.
        content_type: what the header says; anything but multipart is read as JSON.

    Raises:
        BadQuestion: it is no JSON object, or names no model.
    """
    if content_type[:10].lower() == "multipart/":
        return _form(body)
    try:
        found = _decode(body)
    except msgspec.DecodeError as error:
        raise BadQuestion(_unreadable(error, body, content_type)) from None
    except UnicodeDecodeError:
        raise BadQuestion("the body is not valid UTF-8") from None
    except RecursionError:
        raise BadQuestion("the body is nested too deeply") from None
    model = found.model
    if not isinstance(model, str) or not model:
        said = "must be a string" if model is not None else "is missing: say which one shall answer"
        raise BadQuestion(f"'model' {said}", param="model")
    stream = _true(found.stream)
    options = found.stream_options if stream else None
    return Question(
        model,
        stream,
        isinstance(options, dict) and _true(options.get("include_usage")),
        _prefixes(path, model, found) if isinstance(found, _Body) else (),
    )


def _decode(body: bytes) -> _Fields:
    try:
        return _body.decode(body)
    except msgspec.ValidationError:  # `messages` of another shape: the engine says what is wrong with it
        return _fields.decode(body)


def _unreadable(error: msgspec.DecodeError, body: bytes, content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    if isinstance(error, msgspec.ValidationError):
        return "the body must be a JSON object"
    if kind and kind != "application/json" and not body[:SAMPLE].lstrip().startswith(b"{"):
        return f"the body must be JSON (Content-Type: application/json), not {kind[:100]}"
    return f"the body is not valid JSON: {error}"


def _form(body: bytes) -> Question:
    """Read a form, such as that of `/v1/audio/transcriptions`."""
    fields = {name.lower(): value for name, value in FIELD.findall(body)}
    try:
        model = fields.get(b"model", b"").decode().strip()
    except UnicodeDecodeError:
        model = ""
    if not model:
        raise BadQuestion("the form has no field 'model'", param="model")
    return Question(model, _true(fields.get(b"stream", b"").decode("latin-1").strip()))


def _true(value: object) -> bool:
    return value is True or (value is not None and value is not False and str(value).lower() in TRUE)


def _prefixes(path: str, model: str, body: _Body) -> tuple[int, ...]:
    if path.endswith(WITHOUT_PREFIXES):
        return ()
    seed = crc32(model.encode("utf-8", "surrogatepass"))
    for preamble in (body.system, body.instructions):
        view = memoryview(preamble)
        if view:
            seed = _hash(seed, view)
    if body.messages:
        return _cumulative(seed, body.messages)
    text = memoryview(body.input) or memoryview(body.prompt)
    if not text or text[0] not in b'"[':
        return ()
    if text[0] == ord("[") and path.endswith("/responses"):
        return _cumulative(seed, _items.decode(text))
    return tuple(_blocks(seed, text))


def _cumulative(seed: int, messages: Sequence[Raw]) -> tuple[int, ...]:
    found = []
    for message in messages:
        seed = _hash(seed, memoryview(message))
        found.append(seed)
    if len(found) > FIRST + LAST:
        del found[FIRST:-LAST]
    return tuple(found)


def _blocks(seed: int, text: memoryview) -> Iterable[int]:
    """Yield the hashes of a prompt's beginnings: 64 bytes, 128, 256 and so on, and all of it."""
    begin, end = 0, FIRST_BLOCK
    while end < len(text):
        seed = _hash(seed, text[begin:end])
        yield seed
        begin, end = end, 2 * end
    yield _hash(seed, text[begin:])


def _hash(seed: int, view: memoryview) -> int:
    """Return the hash of what a seed stands for and some bytes after it."""
    size = len(view)
    if size > 2 * SAMPLE:
        return hash((seed, size, crc32(view[-SAMPLE:], crc32(view[:SAMPLE]))))
    return hash((seed, size, crc32(view)))
