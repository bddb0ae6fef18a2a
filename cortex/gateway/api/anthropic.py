"""Anthropic's routes: messages and token counting."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import attrs

from cortex.errors import BadRequest, CortexError
from cortex.gateway.anthropic_encoder import MessageStream
from cortex.gateway.api.answers import anthropic_answer
from cortex.gateway.core import InferenceCore
from cortex.gateway.counting import TokenCounter
from cortex.gateway.dispatch import Job
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
_PART = re.compile(r"messages\[\d+\]\.content\[\d+\]")  # how a neuron names a part


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
        conversation: Conversation | None = None
        version = _version(request)
        try:
            with self.core.reading(request, DIALECT):
                body = json.load_object(request.body)
                if self.strict:
                    check_version(request.headers.get("anthropic-version"), body)
                body = await self.images.fetched(body, dotted=True)
                conversation = read(body)
                self.images.admit(conversation.model, image_paths(conversation))
            found = await answer(request, conversation)
        except Exception as exc:
            error = as_cortex_error(exc)
            if not isinstance(exc, CortexError) and error.code == "internal_error":
                raise
            return _refused(error, request.request_id, conversation, version)
        if isinstance(found, StreamAnswer):
            render = partial(_refused, conversation=conversation, version=version)
            found = attrs.evolve(found, render_error=render)
        return attrs.evolve(found, headers={**found.headers, "anthropic-version": version})

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


def _refused(
    error: CortexError, request_id: str, conversation: Conversation | None, version: str
) -> Answer:
    """*error* as the answer; *conversation* is what was asked, as far as it could be read."""
    if conversation is not None:
        error = _in_its_place(error, conversation)
    model = None if conversation is None else conversation.model
    answer = anthropic_answer(error, request_id, model)
    return attrs.evolve(answer, headers={**answer.headers, "anthropic-version": version})


def _in_its_place(error: CortexError, conversation: Conversation) -> CortexError:
    """A neuron's refusal of the first image, with the path that the client knows it by."""
    path = error.param or ""
    if not isinstance(error, BadRequest) or not _PART.fullmatch(path):
        return error
    images = image_paths(conversation)
    if not images:
        return error
    text = error.message.removeprefix(f"{path}: ")
    return BadRequest(f"{images[0]}: {text}", param=images[0], code=error.error_code)


def _version(request: HttpRequest) -> str:
    given = request.headers.get("anthropic-version", OLDEST)
    return given if given.isascii() and given.isprintable() and len(given) <= 32 else OLDEST
