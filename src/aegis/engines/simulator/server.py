"""The HTTP routes of the simulated server."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from aegis.engines.simulator import FINGERPRINT
from aegis.engines.simulator.engine import Batch, PrefixCache
from aegis.engines.simulator.faults import FaultChange, Faults, crash
from aegis.engines.simulator.generate import Generation
from aegis.engines.simulator.metrics import Exposition, Stats
from aegis.engines.simulator.pace import pace_of
from aegis.engines.simulator.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Events,
    Job,
    TokenizeRequest,
    answer,
    chat_tokens,
    decode,
    embeddings,
    encode,
    model_list,
    prompts_of,
    token_list,
)
from aegis.engines.simulator.responses import ResponseEvents, ResponsesRequest, input_tokens, response_of
from aegis.engines.simulator.text import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.engines.simulator import Settings
    from aegis.engines.simulator.engine import StepTime

COMPLETION_TOKENS: Final = 16  # default max_tokens of /v1/completions
PLAIN_SLICE: Final = 0.2  # seconds between two looks at an answer that is not streamed
CRASH_DELAY: Final = 0.05  # seconds: the answer to the injection gets out before the crash
MARK: Final = {"x-aegis-sim": "1", "Server": FINGERPRINT}
JSON: Final = CIMultiDict(MARK | {"Content-Type": "application/json"})
TEXT: Final = CIMultiDict(MARK | {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
STREAM: Final = CIMultiDict(MARK | {"Content-Type": "text/event-stream; charset=utf-8"})

CHAT = msgspec.json.Decoder(ChatRequest)
COMPLETION = msgspec.json.Decoder(CompletionRequest)
EMBEDDING = msgspec.json.Decoder(EmbeddingRequest)
RESPONSES = msgspec.json.Decoder(ResponsesRequest)
TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
FAULT = msgspec.json.Decoder(FaultChange)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Return a JSON answer; building headers from a copy is what keeps this cheap."""
    return web.Response(body=body, status=status, headers=JSON.copy())


class Simulator:
    """One server: a batch, its timing, its faults and its counters behind OpenAI's routes."""

    def __init__(self, settings: Settings, step_time: StepTime | None = None) -> None:
        self.settings = settings
        groups = settings.step_times.groups if settings.step_times else 1
        self.batch = Batch(settings.max_num_seqs * groups, settings.kv_cache_tokens)
        self.faults = Faults(settings.faults, settings.seed)
        self.pace = pace_of(settings, self.batch, self.faults, step_time)
        self.stats = Stats(settings)
        self.open_requests = 0
        self._prefixes = PrefixCache(settings.kv_cache_tokens) if settings.prefix_cache else None
        self._keys = tuple(f"Bearer {key}".encode() for key in settings.api_keys)
        self._models = frozenset(settings.names)
        self._routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self.health},
            "/ping": {"GET": self.health, "POST": self.health},
            "/version": {"GET": self.version},
            "/metrics": {"GET": self.metrics},
            "/tokenize": {"POST": self.tokenize},
            "/v1/models": {"GET": self.models},
            "/v1/completions": {"POST": self.completions},
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/embeddings": {"POST": self.embed},
            "/v1/responses": {"POST": self.responses},
            "/sim/fault": {"GET": self.fault, "POST": self.fault},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        self.open_requests += 1
        try:
            path = request.raw_path.partition("?")[0]
            if self.faults.deaf and path != "/sim/fault":
                await self.faults.until_answering()
            return await self._handler(request, path)(request)
        except ApiError as error:
            return json_response(error.body, error.status)
        finally:
            self.open_requests -= 1

    def _handler(self, request: web.BaseRequest, path: str) -> Handler:
        methods = self._routes.get(path)
        if methods is None:
            raise ApiError(404, "Not Found", type_="Not Found")
        if self._keys and path.startswith("/v1/"):
            given = request.headers.get("Authorization", "").encode("utf-8", "replace")
            if not any(hmac.compare_digest(given, key) for key in self._keys):
                raise ApiError(401, "Unauthorized", type_="Unauthorized")
        handler = methods.get(request.method)
        if handler is None:
            raise ApiError(405, "Method Not Allowed", type_="Method Not Allowed")
        return handler

    async def health(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(headers=TEXT.copy())

    async def version(self, _request: web.BaseRequest) -> web.Response:
        return json_response(encode({"version": FINGERPRINT}))

    async def models(self, _request: web.BaseRequest) -> web.Response:
        return json_response(encode(model_list(self.settings)))

    @cached_property
    def _exposition(self) -> Exposition:
        return Exposition(self.settings, self.stats, self.batch)

    async def metrics(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(body=self._exposition.render(), headers=TEXT.copy())

    async def fault(self, request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            change = decode(FAULT, await request.read())
            self.faults.change(change)
            if change.crash:
                asyncio.get_running_loop().call_later(CRASH_DELAY, crash)
        return json_response(encode(self.faults.state()))

    async def tokenize(self, request: web.BaseRequest) -> web.Response:
        asked = decode(TOKENIZE, await request.read())
        self._served(asked.model)
        return json_response(encode(token_list(asked, self.settings.max_model_len)))

    async def embed(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = decode(EMBEDDING, await request.read())
        model = self._served(asked.model)
        prompts = prompts_of(asked.input)
        self._check_lengths(prompts, 0)
        job = Job(
            id=f"embd-{secrets.token_hex(8)}", created=int(time.time()), model=model, prompts=tuple(prompts)
        )
        return await self._run(request, job, lambda: embeddings(asked, job))

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = decode(CHAT, await request.read())
        limit = asked.max_completion_tokens or asked.max_tokens
        job = self._job(asked, [chat_tokens(asked.messages)], limit, chat=True)
        return await self._run(request, job, lambda: answer(job))

    async def completions(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = decode(COMPLETION, await request.read())
        limit = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        job = self._job(asked, prompts_of(asked.prompt), limit, chat=False)
        return await self._run(request, job, lambda: answer(job))

    async def responses(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = decode(RESPONSES, await request.read())
        model, prompt = self._served(asked.model), input_tokens(asked)
        longest = self._check_lengths([prompt], asked.max_output_tokens or 1)
        limit = asked.max_output_tokens or self.settings.max_model_len - longest
        job = Job(
            id=f"resp_{secrets.token_hex(16)}",
            created=int(time.time()),
            model=model,
            prompts=(prompt,),
            outputs=(plan(limit, self.settings.output_tokens, 0, ()),),
            stream=bool(asked.stream),
        )
        return await self._run(request, job, lambda: encode(response_of(job)), ResponseEvents)

    def _served(self, model: str | None) -> str:
        if model is None:
            return self.settings.names[0]
        if model not in self._models:
            message = f"The model `{model}` does not exist."
            raise ApiError(404, message, type_="NotFoundError", param="model")
        return model

    def _job(
        self, asked: ChatRequest | CompletionRequest, prompts: list[Any], limit: int | None, *, chat: bool
    ) -> Job:
        model = self._served(asked.model)
        longest = self._check_lengths(prompts, limit or 1)
        limit = limit or self.settings.max_model_len - longest
        natural = limit + 1 if asked.ignore_eos else self.settings.output_tokens
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        choices = range(len(prompts) * (asked.n or 1))
        options = asked.stream_options
        return Job(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}",
            created=int(time.time()),
            model=model,
            chat=chat,
            prompts=tuple(prompts),
            outputs=tuple([plan(limit, natural, index % (asked.n or 1), stops) for index in choices]),
            stream=bool(asked.stream),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
        )

    def _check_lengths(self, prompts: Sequence[Sequence[object]], output: int) -> int:
        """Return the longest prompt's tokens, or refuse what is longer than the model's context."""
        if not prompts:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        longest, limit = max(map(len, prompts)), self.settings.max_model_len
        if longest + output > limit:
            raise ApiError(
                400,
                f"This model's maximum context length is {limit} tokens. However, you requested {longest + output}"
                f" tokens ({longest} in the input, {output} for the output). Please shorten one of them.",
                param="max_tokens",
            )
        return longest

    async def _run(
        self,
        request: web.BaseRequest,
        job: Job,
        body: Callable[[], bytes],
        events: Callable[[Job], Events | ResponseEvents] = Events,
    ) -> web.StreamResponse:
        """Queue, generate and answer; whatever ends this (a closed connection too) frees the place."""
        self.faults.arrive()
        if self.faults.fails():
            self.stats.finished["error"] += 1
            raise ApiError(500, "simulated error", type_="InternalServerError")
        if not self.batch.can_ever_fit(job.kv_tokens):
            kv = self.batch.kv_cache_tokens
            raise ApiError(400, f"The request needs {job.kv_tokens} tokens of KV cache; there are {kv}.")
        with Generation(job, self.batch, self.stats, self.pace) as generation:
            if job.prompts and self._prefixes:
                self.stats.prefix_queries += job.prompt_tokens
                generation.cached = sum([self._prefixes.hits(prompt) for prompt in job.prompts])
                self.stats.prefix_hits += generation.cached
            if job.stream:
                return await self._stream(request, events(job), generation)
            async for _ in generation.tokens(PLAIN_SLICE):
                pass
            if self.faults.resets():
                return _drop(request)
            generation.finish()
            return json_response(body())

    async def _stream(
        self, request: web.BaseRequest, events: Events | ResponseEvents, generation: Generation
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM.copy())
        drop_at = generation.longest // 2 if self.faults.resets() else None
        try:
            await response.prepare(request)
            async for position in generation.positions():
                for event in events.at(position):
                    await response.write(event)
                if position == drop_at:
                    _drop(request)
                    return response
            for event in events.end():
                await response.write(event)
        except ConnectionError:  # the client has left, maybe before it was heard; aiohttp notices by itself
            return response
        generation.finish()
        return response


def _drop(request: web.BaseRequest) -> web.Response:
    """Close the connection under the request; what is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
