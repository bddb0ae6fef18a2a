"""OpenAI's Responses routes. Nothing is stored: a response is known to the client alone."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import attrs

from cortex.errors import ContextLengthExceeded, CortexError, NotFound, clip
from cortex.gateway.api.answers import openai_answer, openai_headers
from cortex.gateway.core import InferenceCore
from cortex.gateway.counting import TokenCounter
from cortex.gateway.dispatch import Job
from cortex.gateway.images import ImageGate, image_paths
from cortex.gateway.responses_encoder import ResponseStream
from cortex.service import logs
from cortex.service.http import EVENT_STREAM, Answer, HttpRequest, Route, StreamAnswer
from cortex.translate.chat import chat_body, tokenize_body
from cortex.translate.chat_reader import read_answer
from cortex.translate.responses import Asked, read_count, read_response
from cortex.translate.responses_items import ItemWriter
from cortex.translate.responses_object import response_for, whole_response
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.wire import json

DIALECT = "openai-responses"
CHAT_PATH = "/v1/chat/completions"
PATH = "/v1/responses"

log = logs.get("gateway.responses")


def _now() -> int:
    """Seconds since 1970."""
    return int(time.time())


@attrs.frozen(eq=False)
class ResponsesApi:
    core: InferenceCore
    counter: TokenCounter
    images: ImageGate
    now: Callable[[], int] = _now

    def routes(self) -> list[Route]:
        return [
            Route("POST", PATH, self.create),
            Route("POST", f"{PATH}/input_tokens", self.count),
            Route("POST", f"{PATH}/compact", self.compact),
            Route("GET", f"{PATH}/{{id}}", self.stored),
            Route("DELETE", f"{PATH}/{{id}}", self.stored),
            Route("POST", f"{PATH}/{{id}}/cancel", self.stored),
            Route("GET", f"{PATH}/{{id}}/input_items", self.stored),
        ]

    async def create(self, request: HttpRequest) -> Answer | StreamAnswer:
        with self.core.reading(request, DIALECT):
            asked = read_response(await self.images.fetched(json.load_object(request.body)))
            self.images.admit(asked.conversation.model, image_paths(asked.conversation))
        if asked.dropped:
            log.debug("items left out", types=", ".join(clip(each, 40) for each in asked.dropped))
        id_ = f"resp_{secrets.token_hex(24)}"
        writer = ItemWriter(id_, custom=asked.tools.custom, sealed=asked.sealed)
        response = response_for(asked, id_, self.now())
        job = _job(asked)
        if job.stream:
            encoder = ResponsesEncoder(response, writer, self.now)
            found = await self._stream(request, job, encoder)
            headers = {**found.headers, **openai_headers(request, job.requested)}
            return attrs.evolve(found, headers=headers)
        answer, _ = await self.core.unary(request, job)
        whole = whole_response(read_answer(answer), response, writer, self.now())
        return Answer(json.dumps(whole), headers=openai_headers(request, job.requested))

    async def _stream(
        self, request: HttpRequest, job: Job, encoder: ResponsesEncoder
    ) -> StreamAnswer:
        """The stream of *job*. A prompt that is too long is told within it, as OpenAI does: by the
        code in response.failed, and not by a status, Codex knows that it has to compact."""

        def refused(error: CortexError, request_id: str) -> Answer:
            if isinstance(error, ContextLengthExceeded):
                return Answer(encoder.fail(error), content_type=EVENT_STREAM)
            return openai_answer(error, request_id)

        answer = await self.core.stream(request, job, lambda _: ResponseStream(encoder))
        return attrs.evolve(answer, render_error=refused)

    async def count(self, request: HttpRequest) -> Answer:
        with self.core.reading(request, DIALECT):
            conversation = read_count(json.load_object(request.body))
        self.core.permit(request, conversation.model)
        body = tokenize_body(conversation, conversation.model)
        count = await self.counter.count(conversation.model, body)
        return Answer(json.dumps({"object": "response.input_tokens", "input_tokens": count}))

    async def compact(self, request: HttpRequest) -> Answer:
        raise NotFound("this server does not compact; ask the model for a summary instead")

    async def stored(self, request: HttpRequest) -> Answer:
        id_ = clip(request.params["id"])
        raise NotFound(f"no response '{id_}' is stored here; this server keeps none", param="id")


def _job(asked: Asked) -> Job:
    conversation = asked.conversation
    body = chat_body(conversation, conversation.model)
    # Names of the session and of the user, by which a replica is chosen.
    for name in ("prompt_cache_key", "safety_identifier"):
        value = getattr(asked.request, name)
        if value is not None:
            body[name] = value
    return Job(DIALECT, conversation.model, CHAT_PATH, body, conversation.stream)
