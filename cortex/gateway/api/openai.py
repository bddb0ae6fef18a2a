"""OpenAI's inference routes: chat completions, completions, embeddings; and counting."""

from __future__ import annotations

import math
from typing import Any, cast

import attrs

from cortex.errors import UpstreamError
from cortex.gateway.api.answers import openai_headers
from cortex.gateway.core import InferenceCore
from cortex.gateway.counting import TokenCounter
from cortex.gateway.dispatch import Job
from cortex.gateway.encoder import PassThrough
from cortex.gateway.images import ImageGate
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer
from cortex.translate.chat_media import check_images
from cortex.wire import json
from cortex.wire.converter import structure
from cortex.wire.embeddings import BASE64, EmbeddingRequest, unpacked
from cortex.wire.openai import ChatRequest, CompletionRequest, SamplingFields, TokenizeRequest

# What a client may say to `/tokenize`: where a model's files are is the catalogue's to say.
_DECIDE_THE_PROMPT = tuple(
    field.name
    for field in attrs.fields(TokenizeRequest)
    if field.name not in ("model", "return_tokens")
)


@attrs.frozen(eq=False)
class OpenAiApi:
    core: InferenceCore
    counter: TokenCounter
    images: ImageGate

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/chat/completions", self.chat),
            Route("POST", "/v1/completions", self.completions),
            Route("POST", "/v1/embeddings", self.embeddings),
            Route("POST", "/tokenize", self.tokenize),
        ]

    async def chat(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._serve(request, ChatRequest, "openai-chat")

    async def completions(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._serve(request, CompletionRequest, "openai-completions")

    async def embeddings(self, request: HttpRequest) -> Answer:
        dialect = "openai-embeddings"
        with self.core.reading(request, dialect):
            body = json.load_object(request.body)
            asked = structure(body, EmbeddingRequest)
        # Vectors travel packed: a list of numbers is several times as long, and slow to parse.
        sent = {**body, "encoding_format": BASE64}
        job = Job(dialect, asked.model, request.path, sent, stream=False)
        answer, _ = await self.core.unary(request, job)
        if asked.encoding_format != BASE64:
            _unpack(answer)
        answer["model"] = asked.model
        return Answer(json.dumps(answer), headers=openai_headers(request, asked.model))

    async def tokenize(self, request: HttpRequest) -> Answer:
        """``{count}`` of the tokens of a chat's or a plain prompt, as vLLM's route of this name.
        The tokens themselves are not told. OpenAI has no such route."""
        with self.core.reading(request, "openai-tokenize"):
            body = json.load_object(request.body)
            asked = structure(body, TokenizeRequest)
        self.core.permit(request, asked.model)
        told = {name: body[name] for name in _DECIDE_THE_PROMPT if name in body}
        count = await self.counter.count(asked.model, told)
        return Answer(json.dumps({"count": count}), headers=openai_headers(request, asked.model))

    async def _serve(
        self, request: HttpRequest, shape: type[ChatRequest] | type[CompletionRequest], dialect: str
    ) -> Answer | StreamAnswer:
        with self.core.reading(request, dialect):
            body = json.load_object(request.body)
            if shape is ChatRequest:
                body = await self.images.fetched(body)
            asked = cast("SamplingFields", structure(body, shape))
            if shape is ChatRequest:
                self.images.admit(asked.model, check_images(body))
        job = Job(
            dialect, asked.model, request.path, _upstream_body(body, asked), bool(asked.stream)
        )
        if asked.stream:
            found = await self.core.stream(
                request,
                job,
                lambda model: PassThrough(
                    model=model, requested=asked.model, include_usage=asked.include_usage
                ),
            )
            return attrs.evolve(
                found, headers={**found.headers, **openai_headers(request, asked.model)}
            )
        answer, _ = await self.core.unary(request, job)
        answer["model"] = asked.model
        return Answer(json.dumps(answer), headers=openai_headers(request, asked.model))


def _unpack(answer: dict[str, Any]) -> None:
    """Write the vectors of *answer* as lists; a node that sent lists all the same is left alone."""
    data = answer.get("data")
    for entry in data if isinstance(data, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("embedding"), str):
            try:
                numbers = unpacked(entry["embedding"]).tolist()
            except ValueError as exc:
                raise UpstreamError("the neuron sent a vector that is none") from exc
            if not all(map(math.isfinite, numbers)):
                raise UpstreamError("the neuron sent a vector that is not finite")
            entry["embedding"] = numbers


def _upstream_body(body: dict[str, Any], asked: SamplingFields) -> dict[str, Any]:
    """*body* as it is sent on: always asking for usage, which the gateway meters."""
    if not asked.stream:
        return body
    options = body.get("stream_options") or {}
    return {**body, "stream_options": {**options, "include_usage": True}}
