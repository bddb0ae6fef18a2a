"""OpenAI's inference routes: chat completions and completions."""

from __future__ import annotations

from typing import Any, cast

import attrs

from cortex.gateway.core import InferenceCore, Job
from cortex.gateway.encoder import PassThrough
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer
from cortex.wire import json
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest, CompletionRequest, SamplingFields


@attrs.frozen(eq=False)
class OpenAiApi:
    core: InferenceCore

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/chat/completions", self.chat),
            Route("POST", "/v1/completions", self.completions),
        ]

    async def chat(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._serve(request, ChatRequest, "openai-chat")

    async def completions(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._serve(request, CompletionRequest, "openai-completions")

    async def _serve(
        self, request: HttpRequest, shape: type[ChatRequest] | type[CompletionRequest], dialect: str
    ) -> Answer | StreamAnswer:
        with self.core.reading(request, dialect):
            body = json.load_object(request.body)
            asked = cast("SamplingFields", structure(body, shape))
        job = Job(
            dialect, asked.model, request.path, _upstream_body(body, asked), bool(asked.stream)
        )
        if asked.stream:
            return await self.core.stream(
                request,
                job,
                lambda model: PassThrough(
                    model=model, requested=asked.model, include_usage=asked.include_usage
                ),
            )
        answer, _ = await self.core.unary(request, job)
        answer["model"] = asked.model
        return Answer(json.dumps(answer))


def _upstream_body(body: dict[str, Any], asked: SamplingFields) -> dict[str, Any]:
    """*body* as it is sent on: always asking for usage, which the gateway meters."""
    if not asked.stream:
        return body
    options = body.get("stream_options") or {}
    return {**body, "stream_options": {**options, "include_usage": True}}
