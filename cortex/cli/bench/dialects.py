"""What is asked, and what an answer tells, in each dialect that an endpoint may speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from cortex.errors import clip
from cortex.wire import json
from cortex.wire.sse import Frame

Json = dict[str, Any]


@attrs.define
class Answer:
    """What came so far. An answer is whole when it is ``finished`` and without ``error``."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finished: bool = False
    error: str | None = None


class Dialect(Protocol):
    @property
    def path(self) -> str: ...

    def headers(self, key: str | None) -> dict[str, str]: ...

    def body(
        self, model: str, prompt: str, max_tokens: int, *, stream: bool, ignore_eos: bool
    ) -> Json: ...

    def take(self, answer: Answer, frame: Frame) -> bool:
        """Note in *answer* what a frame of a stream tells; whether it has output."""
        ...

    def take_whole(self, answer: Answer, body: Json) -> None:
        """Note what an answer that is no stream tells."""
        ...


@attrs.frozen
class OpenAi:
    path: str
    question: Callable[[str], Json]

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"authorization": f"Bearer {key}"}

    def body(
        self, model: str, prompt: str, max_tokens: int, *, stream: bool, ignore_eos: bool
    ) -> Json:
        body = {"model": model, "max_tokens": max_tokens, **self.question(prompt)}
        if ignore_eos:
            body["ignore_eos"] = True
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def take(self, answer: Answer, frame: Frame) -> bool:
        if frame.data is None:
            return False
        if frame.data == b"[DONE]":
            answer.finished = True
            return False
        event = _object(frame.data)
        if event.get("error"):
            answer.error = _code(event)
        self._usage(answer, event)
        choices = event.get("choices")
        return isinstance(choices, list) and any(_has_output(choice) for choice in choices)

    def take_whole(self, answer: Answer, body: Json) -> None:
        self._usage(answer, body)
        answer.finished = bool(body.get("choices"))

    def _usage(self, answer: Answer, told: Any) -> None:
        usage = told.get("usage") if isinstance(told, dict) else None
        if not isinstance(usage, dict):
            return
        answer.prompt_tokens = _count(usage, "prompt_tokens", answer.prompt_tokens)
        answer.completion_tokens = _count(usage, "completion_tokens", answer.completion_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            answer.cached_tokens = _count(details, "cached_tokens", answer.cached_tokens)


@attrs.frozen
class Anthropic:
    path: str = "/v1/messages"

    def headers(self, key: str | None) -> dict[str, str]:
        version = {"anthropic-version": "2023-06-01"}
        return version if key is None else {**version, "x-api-key": key}

    def body(
        self, model: str, prompt: str, max_tokens: int, *, stream: bool, ignore_eos: bool
    ) -> Json:
        body = {"model": model, "max_tokens": max_tokens, **_messages(prompt)}
        return {**body, "stream": True} if stream else body

    def take(self, answer: Answer, frame: Frame) -> bool:
        if frame.data is None:
            return False
        event = _object(frame.data)
        kind = event.get("type")
        if kind == "error":
            answer.error = _code(event)
        elif kind == "message_start":
            self._usage(answer, event.get("message"))
        elif kind == "message_delta":
            self._usage(answer, event)
        elif kind == "message_stop":
            answer.finished = True
        return kind == "content_block_delta"

    def take_whole(self, answer: Answer, body: Json) -> None:
        self._usage(answer, body)
        answer.finished = body.get("stop_reason") is not None

    def _usage(self, answer: Answer, told: Any) -> None:
        usage = told.get("usage") if isinstance(told, dict) else None
        if not isinstance(usage, dict):
            return
        answer.completion_tokens = _count(usage, "output_tokens", answer.completion_tokens)
        fresh = _count(usage, "input_tokens", None)
        if fresh is not None:  # what came from the cache is told beside it
            answer.cached_tokens = _count(usage, "cache_read_input_tokens", 0)
            written = _count(usage, "cache_creation_input_tokens", 0) or 0
            answer.prompt_tokens = fresh + (answer.cached_tokens or 0) + written


def _messages(prompt: str) -> Json:
    return {"messages": [{"role": "user", "content": prompt}]}


DIALECTS: Mapping[str, Dialect] = {
    "chat": OpenAi("/v1/chat/completions", _messages),
    "completions": OpenAi("/v1/completions", lambda prompt: {"prompt": prompt}),
    "messages": Anthropic(),
}


def error_of(status: int, body: bytes) -> str:
    """A few words about an answer with a *status* other than 200: they are counted by."""
    try:
        return f"{status} {_code(json.load_object(body))}"
    except Exception:  # no JSON of ours: a proxy's page, say
        return str(status)


def _code(told: Json) -> str:
    error = told.get("error")
    if not isinstance(error, dict):
        return "error"
    return clip(error.get("code") or error.get("type") or "error", 60)


def _object(data: bytes) -> Json:
    """What *data* says; an error in a frame that is no event."""
    try:
        return json.load_object(data)
    except Exception:
        return {"type": "error", "error": {"code": "no JSON"}}


def _has_output(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return any(delta.get(k) for k in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _count(told: Json, name: str, known: int | None) -> int | None:
    value = told.get(name)
    return value if isinstance(value, int) else known
