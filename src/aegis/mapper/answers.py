"""What a server's answer means for a row: a line of the output, or another try. Pure."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from aegis.mapper.rows import Row

# What a server showed of itself.
Word = Literal["answered", "busy", "failed", "missing", "refused", "unreachable"]

TOO_LONG: Final = "context_length_exceeded"
LENGTH: Final = re.compile(
    r"context.length|context.window|maximum (model|input|sequence) length|max_model_len|max_seq_len",
    re.IGNORECASE,
)
# 408 and 425 ask for the same again. vLLM says 503 while it sleeps, SGLang when its queue is full.
BUSY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# No such model, no such route: not the row's fault, for rows go where their model is served. Another server has the port.
MISSING: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
AGAIN: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
TOO_LARGE: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, 422})
BROKEN_OFF: Final = frozenset({"abort", "error"})  # how vLLM and SGLang end an answer when they are stopped
MESSAGE_CHARACTERS: Final = 2000


class Problem(Struct, frozen=True):
    """Why a row has no answer."""

    code: str
    message: str
    status: int | None = None  # of HTTP


class Finished(Struct, frozen=True):
    """A row's line of the output."""

    line: bytes
    failed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    code: str = ""  # of what failed


class Again(Struct, frozen=True):
    """A row that another try may answer."""

    word: Word
    problem: Problem
    wait: float | None = None  # seconds that the server asks for


class Usage(Struct, frozen=True):
    """Tokens of an answer."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class Choice(Struct, frozen=True):
    """What is looked at of an answer."""

    finish_reason: str | None = None


class Body(Struct, frozen=True):
    """What is looked at of a good answer."""

    id: str | None = None
    usage: Usage | None = None
    choices: tuple[Choice, ...] | None = None


_body = msgspec.json.Decoder(Body)
_NO_USAGE: Final = Usage()


def judge(row: Row, status: int, body: bytes, retry_after: str | None = None) -> Finished | Again:
    """Return what an answer means for its row."""
    if status == HTTPStatus.OK:
        return _answered(row, body)
    problem = _problem(status, body)
    if status in BUSY:
        return Again("busy", problem, _seconds(retry_after))
    if status in REFUSED:
        return Again("refused", problem)
    if status in MISSING:
        return Again("missing", problem)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in AGAIN:
        return Again("failed", problem)
    return failed(row, problem)


def failed(row: Row, problem: Problem) -> Finished:
    """Return the line of a row that has no answer."""
    error = msgspec.json.encode(problem)
    return Finished(b'%b,"response":null,"error":%b}' % (_start(row), error), failed=True, code=problem.code)


def _answered(row: Row, body: bytes) -> Finished | Again:
    try:
        if b"\n" in body:
            body = msgspec.json.format(body, indent=-1)
        seen = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Again(
            "failed", Problem("bad_answer", f"the answer is no JSON of OpenAI's: {error}", HTTPStatus.OK)
        )
    if seen.choices and any(choice.finish_reason in BROKEN_OFF for choice in seen.choices):
        return Again("failed", Problem("aborted", "the server broke the answer off", HTTPStatus.OK))
    usage = seen.usage or _NO_USAGE
    line = b'%b,"response":{"status_code":200,"request_id":%b,"body":%b},"error":null}' % (
        _start(row),
        msgspec.json.encode(seen.id),
        body,
    )
    return Finished(line, False, usage.prompt_tokens or 0, usage.completion_tokens or 0)


def _start(row: Row) -> bytes:
    """Return the beginning of a row's line; the id is the same in every run."""
    return b'{"id":"row-%d","custom_id":%b' % (row.position + 1, msgspec.json.encode(row.key))


def _problem(status: int, body: bytes) -> Problem:
    """Return the error of an answer: OpenAI's shape, its older one of vLLM, FastAPI's, or any text."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    error: dict[str, Any] = found if isinstance(found, dict) else {}
    if isinstance(inner := error.get("error"), dict):
        error = inner
    told = error.get("message") or error.get("detail") or error.get("error")
    message = told if isinstance(told, str) else body.decode("utf-8", "replace")
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    if code == TOO_LONG or (status in TOO_LARGE and LENGTH.search(message)):
        code = TOO_LONG
    name = code if isinstance(code, str) and code else f"http_{status}"
    return Problem(name, message[:MESSAGE_CHARACTERS] or f"HTTP {status}", status)


def _seconds(retry_after: str | None) -> float | None:
    """Return what a Retry-After says in seconds; dates are left aside."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
