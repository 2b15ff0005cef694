"""`/v1/responses`: OpenAI's newer form of a chat, plain and as events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aegis.engines.simulator.protocol import ApiError, Message, Positive, encode
from aegis.engines.simulator.text import pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.engines.simulator.protocol import Job


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """The body; further keys are ignored, as there is nothing to sample."""

    input: str | list[Message]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    stream: bool | None = None


def input_tokens(asked: ResponsesRequest) -> list[str]:
    """Return the tokens of what is asked, with the head of the answer to come.

    Raises:
        ApiError: nothing is asked (400).
    """
    if not asked.input:
        raise ApiError(400, "The input is empty.", param="input")
    found = ["system", *pieces(asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*found, "user", *pieces(asked.input), "assistant"]
    return found + [piece for message in asked.input for piece in message.pieces()] + ["assistant"]


def response_of(job: Job) -> dict[str, Any]:
    """Return the whole answer."""
    output, usage = job.outputs[0], job.usage
    cut = output.finish_reason == "length"
    return _object(job, "incomplete" if cut else "completed") | {
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_message(job, output.text, "completed")],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


def _object(job: Job, status: str) -> dict[str, Any]:
    head = {"id": job.id, "object": "response", "created_at": job.created, "model": job.model}
    return head | {"status": status, "output": [], "error": None, "usage": None}


def _message(job: Job, text: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}] if status == "completed" else []
    name = job.id.replace("resp", "msg", 1)
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


class ResponseEvents:
    """The server-sent events of one stream."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._number = 0
        self._item = {"item_id": job.id.replace("resp", "msg", 1), "output_index": 0}
        self._part = self._item | {"content_index": 0}

    def at(self, position: int) -> Iterator[bytes]:
        """Yield the events of a token."""
        if position == 0:
            started = {"response": _object(self._job, "in_progress")}
            yield self._event("created", started)
            yield self._event("in_progress", started)
            item = _message(self._job, "", "in_progress")
            yield self._event("output_item.added", {"output_index": 0, "item": item})
            yield self._event("content_part.added", self._part | {"part": _part("")})
        yield self._event("output_text.delta", self._part | {"delta": self._job.outputs[0].tokens[position]})

    def end(self) -> Iterator[bytes]:
        """Yield what comes after the last token."""
        text, whole = self._job.outputs[0].text, response_of(self._job)
        yield self._event("output_text.done", self._part | {"text": text})
        yield self._event("content_part.done", self._part | {"part": _part(text)})
        yield self._event("output_item.done", {"output_index": 0, "item": whole["output"][0]})
        yield self._event(whole["status"], {"response": whole})

    def _event(self, kind: str, content: dict[str, Any]) -> bytes:
        name = f"response.{kind}"
        body = {"type": name, "sequence_number": self._number, **content}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(body))


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
