"""What comes in and goes out: OpenAI's bodies with vLLM's keys."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from aegis.engines.simulator import FINGERPRINT
from aegis.engines.simulator.text import EMBEDDING_SIZE, Output, embedding, pieces, token_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.engines.simulator import Settings

encode = msgspec.json.encode
Positive = Annotated[int, Meta(ge=1)]
Prompt = str | list[str | int | list[int]]  # text or token ids, one or several
T = TypeVar("T")


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self, status: int, message: str, *, type_: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = encode({"error": {"message": message, "type": type_, "param": param, "code": status}})


class StreamOptions(Struct, frozen=True):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """What chat and plain completions share; further keys are ignored, as there is nothing to sample."""

    model: str | None = None
    max_tokens: Positive | None = None
    n: Positive | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Message(Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def pieces(self) -> list[str]:
        """Return the tokens; what is not text (an image, ...) counts as one."""
        if isinstance(self.content, str):
            return [self.role, *pieces(self.content)]
        texts = [str(part.get("text", f"<{part.get('type')}>")) for part in self.content or ()]
        return [self.role, *pieces(" ".join(texts))]


class ChatRequest(Sampling, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None


class CompletionRequest(Sampling, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompt: Prompt


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """The body of /v1/embeddings."""

    input: Prompt
    model: str | None = None
    dimensions: Annotated[int, Meta(ge=1, le=8192)] | None = None
    encoding_format: str | None = None


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """The body of /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


class Job(Struct, frozen=True, kw_only=True):
    """A request understood: what to answer, and how."""

    id: str
    created: int  # epoch seconds
    model: str
    prompts: tuple[Sequence[object], ...]  # tokens
    outputs: tuple[Output, ...] = ()  # one per choice
    chat: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def kv_tokens(self) -> int:
        """Tokens held in the KV cache until the end."""
        return self.prompt_tokens + sum([len(output.tokens) for output in self.outputs])

    @property
    def usage(self) -> dict[str, Any]:
        """The token counts, with the keys of a stream."""
        prompt, total = self.prompt_tokens, self.kv_tokens
        return {"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": total - prompt}


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read a body.

    Raises:
        ApiError: it is not JSON, or lacks a key, or a value has the wrong type (400).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"1 validation error: {error}", type_="Bad Request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"There was an error parsing the body: {error}", type_="Bad Request") from None


def prompts_of(prompt: Prompt) -> list[Sequence[object]]:
    """Return the tokens of every prompt of a request.

    Raises:
        ApiError: token ids stand between texts or lists (400).
    """
    if isinstance(prompt, str):
        return [pieces(prompt)]
    ids = [one for one in prompt if isinstance(one, int)]
    if not ids:
        return [pieces(one) if isinstance(one, str) else one for one in prompt if not isinstance(one, int)]
    if len(ids) < len(prompt):
        raise ApiError(400, "1 validation error: a prompt mixes token ids with texts", type_="Bad Request")
    return [ids]


def chat_tokens(messages: Sequence[Message]) -> list[str]:
    """Return the tokens of a chat, with the head of the answer to come."""
    return [piece for message in messages for piece in message.pieces()] + ["assistant"]


def answer(job: Job) -> bytes:
    """Return the body of a plain answer."""
    choices = [
        _chat_choice(index, output) if job.chat else _text_choice(index, output)
        for index, output in enumerate(job.outputs)
    ]
    body = {
        "id": job.id,
        "object": "chat.completion" if job.chat else "text_completion",
        "created": job.created,
        "model": job.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": job.usage | {"prompt_tokens_details": None, "completion_tokens_details": None},
    }
    if job.chat:
        body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return encode(body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})
    return encode(body | {"kv_transfer_params": None})


def _chat_choice(index: int, output: Output) -> dict[str, Any]:
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": output.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": None,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "token_ids": None,
        "routed_experts": None,
    }


def _text_choice(index: int, output: Output) -> dict[str, Any]:
    return {
        "index": index,
        "text": output.text,
        "logprobs": None,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }


class Events:
    """The server-sent events of one stream; the parts that never change are built once."""

    DONE = b"data: [DONE]\n\n"

    def __init__(self, job: Job) -> None:
        self._job = job
        kind = "chat.completion.chunk" if job.chat else "text_completion"
        head = {"id": job.id, "object": kind, "created": job.created, "model": job.model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._text_key = b',"delta":{"content":' if job.chat else b',"text":'
        self._text_end = b'},"logprobs":null' if job.chat else b',"logprobs":null'

    def at(self, position: int) -> Iterator[bytes]:
        """Yield the events of a position: a token of each choice that is as long as that."""
        if position == 0 and self._job.chat:
            for index in range(len(self._job.outputs)):
                yield self.role(index)
        for index, output in enumerate(self._job.outputs):
            if position < len(output.tokens):
                yield self.token(index, position)

    def end(self) -> Iterator[bytes]:
        """Yield what comes after the last token."""
        if self._job.include_usage:
            yield self.usage()
        yield self.DONE

    def role(self, index: int) -> bytes:
        """Return the first event of a chat choice."""
        choice = (
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        )
        return self._head + choice % index + b'],"prompt_token_ids":null,"prompt_text":null}\n\n'

    def token(self, index: int, position: int) -> bytes:
        """Return the event of one token, which ends its choice if it is the last."""
        output = self._job.outputs[index]
        finish = b',"finish_reason":null,"token_ids":null}'
        if position == len(output.tokens) - 1:
            reasons = encode(output.finish_reason), encode(output.stop_reason)
            finish = b',"finish_reason":%b,"stop_reason":%b,"token_ids":null}' % reasons
        usage = b""
        if self._job.continuous_usage:
            prompt = self._job.prompt_tokens
            counts = (prompt, prompt + position + 1, position + 1)
            usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % counts
        text = encode(output.tokens[position])
        start = b'{"index":%d' % index
        return b"".join(
            (self._head, start, self._text_key, text, self._text_end, finish, b"]", usage, b"}\n\n")
        )

    def usage(self) -> bytes:
        """Return the event that tells the token counts."""
        counts = encode({"usage": self._job.usage, "system_fingerprint": FINGERPRINT})
        return self._head + b"]," + counts[1:] + b"\n\n"


def model_list(settings: Settings) -> dict[str, Any]:
    """Return the body of /v1/models."""
    now = int(time.time())
    permission = {
        "id": "modelperm-simulated",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    models = [
        {
            "id": name,
            "object": "model",
            "created": now,
            "owned_by": "aegis-sim",
            "root": settings.model,
            "parent": None,
            "max_model_len": settings.max_model_len,
            "permission": [permission],
        }
        for name in settings.names
    ]
    return {"object": "list", "data": models}


def token_list(asked: TokenizeRequest, max_model_len: int) -> dict[str, Any]:
    """Return the body of /tokenize."""
    if asked.messages is not None:
        found = chat_tokens(asked.messages)
    elif asked.prompt is not None:
        found = pieces(asked.prompt)
    else:
        raise ApiError(400, "1 validation error: `prompt` or `messages` is missing", type_="Bad Request")
    return {
        "count": len(found),
        "max_model_len": max_model_len,
        "tokens": [token_id(piece) for piece in found],
        "token_strs": found if asked.return_token_strs else None,
    }


def embeddings(asked: EmbeddingRequest, job: Job) -> bytes:
    """Return the body of /v1/embeddings."""
    size = asked.dimensions or EMBEDDING_SIZE
    vectors = [embedding(" ".join(map(str, prompt)), size) for prompt in job.prompts]
    as_text = asked.encoding_format == "base64"
    data = [
        {
            "index": index,
            "object": "embedding",
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = job.usage | {"prompt_tokens_details": None}
    head = {"id": job.id, "object": "list", "created": job.created, "model": job.model}
    return encode(head | {"data": data, "usage": usage, "system_fingerprint": FINGERPRINT})
