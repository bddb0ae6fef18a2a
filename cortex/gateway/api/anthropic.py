"""Anthropic's routes: messages and token counting."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import attrs

from cortex.errors import CortexError
from cortex.gateway.anthropic_encoder import MessageStream
from cortex.gateway.api.answers import anthropic_answer
from cortex.gateway.core import InferenceCore, Job
from cortex.gateway.counting import TokenCounter
from cortex.gateway.images import ImageGate, image_paths
from cortex.service.edge import as_cortex_error
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer
from cortex.translate.anthropic import read_count, read_messages
from cortex.translate.anthropic_blocks import BlockWriter, message
from cortex.translate.anthropic_version import OLDEST, check_version
from cortex.translate.chat import chat_body, tokenize_body
from cortex.translate.chat_reader import read_answer
from cortex.translate.conversation import Conversation
from cortex.wire import json

DIALECT = "anthropic-messages"
CHAT_PATH = "/v1/chat/completions"


@attrs.frozen(eq=False)
class AnthropicApi:
    """*strict*: what a version of the API does not know is refused, and an unknown version too."""

    core: InferenceCore
    counter: TokenCounter
    images: ImageGate
    strict: bool = False

    def routes(self) -> list[Route]:
        return [
            Route("POST", f"{prefix}/v1/messages{suffix}", handler, anthropic_answer)
            for prefix in ("", "/anthropic")
            for suffix, handler in (("", self.messages), ("/count_tokens", self.count))
        ]

    async def messages(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._told(request, read_messages, self._answer)

    async def count(self, request: HttpRequest) -> Answer | StreamAnswer:
        return await self._told(request, read_count, self._count)

    async def _told(
        self,
        request: HttpRequest,
        read: Callable[[dict[str, object]], Conversation],
        answer: Callable[[HttpRequest, Conversation], Awaitable[Answer | StreamAnswer]],
    ) -> Answer | StreamAnswer:
        """What *answer* makes of the body; errors that clients match name the model they sent."""
        model: str | None = None
        try:
            with self.core.reading(request, DIALECT):
                body = json.load_object(request.body)
                if self.strict:
                    check_version(request.headers.get("anthropic-version"), body)
                body = await self.images.fetched(body, dotted=True)
                conversation = read(body)
                model = conversation.model
                self.images.admit(model, image_paths(conversation))
            found = await answer(request, conversation)
        except Exception as exc:
            error = as_cortex_error(exc)
            if not isinstance(exc, CortexError) and error.code == "internal_error":
                raise
            found = anthropic_answer(error, request.request_id, model)
        headers = {"anthropic-version": _version(request)}
        if isinstance(found, StreamAnswer):
            render = partial(anthropic_answer, model=conversation.model)
            found = attrs.evolve(found, render_error=render)
        return attrs.evolve(found, headers={**found.headers, **headers})

    async def _answer(
        self, request: HttpRequest, conversation: Conversation
    ) -> Answer | StreamAnswer:
        message_id = f"msg_{secrets.token_hex(12)}"
        job = Job(
            DIALECT,
            conversation.model,
            CHAT_PATH,
            chat_body(conversation, conversation.model),
            conversation.stream,
        )
        if conversation.stream:
            encoder = MessageStream(conversation, message_id, request.request_id)
            return await self.core.stream(request, job, lambda _: encoder)
        answer, _ = await self.core.unary(request, job)
        events = read_answer(answer, prewarm=conversation.prewarm)
        writer = BlockWriter(message_id, shown=conversation.reasoning.shown)
        return Answer(json.dumps(message(events, writer, model=conversation.model)))

    async def _count(self, request: HttpRequest, conversation: Conversation) -> Answer:
        self.core.permit(request, conversation.model)
        body = tokenize_body(conversation, conversation.model)
        count = await self.counter.count(conversation.model, body)
        return Answer(json.dumps({"input_tokens": count}))


def _version(request: HttpRequest) -> str:
    given = request.headers.get("anthropic-version", OLDEST)
    return given if given.isascii() and given.isprintable() and len(given) <= 32 else OLDEST
