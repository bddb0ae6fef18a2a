"""Chat-completion bodies and chunks. Pure.

What the neuron adds to OpenAI's shapes: ``reasoning_content``, ``choices[].stop_reason`` (the stop
string that matched), ``timings`` beside ``usage``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cortex.engine.request import TokenLogprob
from cortex.neuron.generation import Completion, Update
from cortex.text.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallDelta
from cortex.text.tokenizer import Tokenizer
from cortex.wire import json, sse
from cortex.wire.neuron import Timings

LOWEST_LOGPROB = -9999.0  # for minus infinity, which JSON cannot say


def logprob_entry(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Any]:
    """One token's logprob with its alternatives, in OpenAI's chat shape."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}

    return {
        **one(entry.token, entry.logprob),
        "top_logprobs": [one(token, logprob) for token, logprob in entry.top],
    }


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


def delta_body(delta: Delta, *, legacy: bool = False) -> dict[str, Any]:
    """The delta of a chunk. ``legacy``: a call is told as ``function_call``."""
    if isinstance(delta, ContentDelta):
        return {"content": delta.text}
    if isinstance(delta, ReasoningDelta):
        return {"reasoning_content": delta.text}
    if legacy:
        named = {} if delta.name is None else {"name": delta.name}
        return {"function_call": {**named, "arguments": delta.arguments}}
    call: dict[str, Any] = {"index": delta.index}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
    call["function"] = {"arguments": delta.arguments}
    if delta.name is not None:
        call["function"] = {"name": delta.name, "arguments": delta.arguments}
    return {"tool_calls": [call]}


@attrs.define(eq=False)
class ChatStream:
    """The frames of one streamed chat completion. *early_usage* puts the prompt's count on the
    first chunk, which gateways ask for. *legacy*: see `delta_body`."""

    id: str
    model: str
    created: int
    tokenizer: Tokenizer
    logprobs: bool
    include_usage: bool
    prompt_tokens: int
    early_usage: bool
    legacy: bool = False

    def opening(self, choices: int) -> bytes:
        """The role chunk of each choice."""
        frames = b""
        for index in range(choices):
            delta = {"role": "assistant", "content": "", "refusal": None}
            choice = self._choice(index, delta)
            if self.logprobs:
                choice["logprobs"] = {"content": [], "refusal": None}
            chunk = self._chunk(choice)
            if index == 0 and self.early_usage:
                chunk["usage"] = {
                    "prompt_tokens": self.prompt_tokens,
                    "completion_tokens": 0,
                    "total_tokens": self.prompt_tokens,
                }
            frames += sse.data_frame(json.dumps(chunk))
        return frames

    def update(self, index: int, update: Update) -> bytes:
        """The frames of one step of choice *index*, without its finish."""
        bodies = [delta_body(delta, legacy=self.legacy) for delta in update.deltas]
        entries = [logprob_entry(self.tokenizer, entry) for entry in update.logprobs]
        if entries and not bodies:
            bodies = [{}]  # the token's text is held back, its logprob is not
        frames = b""
        for number, body in enumerate(bodies):
            choice = self._choice(index, body)
            if self.logprobs:
                content = entries if number == 0 else []
                choice["logprobs"] = {"content": content, "refusal": None}
            frames += sse.data_frame(json.dumps(self._chunk(choice)))
        return frames

    def finish(self, completion: Completion, timings: Timings | None) -> bytes:
        """The chunk with the finish reason; the last choice's carries the timings."""
        choice = self._choice(completion.index, {}, _finish(completion, self.legacy))
        choice["stop_reason"] = completion.parser.matched_stop
        chunk = self._chunk(choice)
        if timings is not None:
            chunk["timings"] = attrs.asdict(timings)
        return sse.data_frame(json.dumps(chunk))

    def end(self, usage: dict[str, object]) -> bytes:
        frames = b""
        if self.include_usage:
            frames = sse.data_frame(json.dumps({**self._chunk(), "usage": usage}))
        return frames + sse.DONE

    def _choice(
        self, index: int, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _chunk(self, choice: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [] if choice is None else [choice],
        }
        if self.include_usage:
            chunk["usage"] = None
        return chunk


@attrs.define(eq=False)
class ChatMessage:
    """Collects the updates of one choice into a message."""

    tokenizer: Tokenizer
    logprobs: bool
    legacy: bool = False
    content: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: list[dict[str, Any]] = attrs.field(factory=list)
    entries: list[dict[str, Any]] = attrs.field(factory=list)

    def add(self, update: Update) -> None:
        for delta in update.deltas:
            if isinstance(delta, ContentDelta):
                self.content.append(delta.text)
            elif isinstance(delta, ReasoningDelta):
                self.reasoning.append(delta.text)
            else:
                self._add_call(delta)
        if self.logprobs:
            self.entries += (logprob_entry(self.tokenizer, entry) for entry in update.logprobs)

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.id is not None:
            function = {"name": delta.name, "arguments": ""}
            self.calls.append({"id": delta.id, "type": "function", "function": function})
        self.calls[delta.index]["function"]["arguments"] += delta.arguments

    def choice(self, completion: Completion) -> dict[str, Any]:
        content = "".join(self.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.calls and not content.strip() else content,
            "refusal": None,
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls and self.legacy:
            message["function_call"] = self.calls[0]["function"]
        elif self.calls:
            message["tool_calls"] = self.calls
        return {
            "index": completion.index,
            "message": message,
            "logprobs": {"content": self.entries, "refusal": None} if self.logprobs else None,
            "finish_reason": _finish(completion, self.legacy),
            "stop_reason": completion.parser.matched_stop,
        }


def _finish(completion: Completion, legacy: bool) -> str | None:
    return "function_call" if legacy and completion.finish == "tool_calls" else completion.finish


def chat_body(
    id: str,  # noqa: A002 - the field's name
    model: str,
    created: int,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, object],
    timings: Timings,
) -> dict[str, Any]:
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": usage,
        "timings": attrs.asdict(timings),
        "service_tier": "default",
        "system_fingerprint": None,
    }
