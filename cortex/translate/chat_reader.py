"""Chat-completion answers as events: whole ones, and streams frame by frame.

What other servers get wrong is mended where the meaning is plain (no index, ids repeated,
arguments as an object, `reasoning` for `reasoning_content`) and is a failure where it is not. An
answer without a finish reason has failed, however its stream ended.
"""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from cortex.errors import BadRequest, CortexError, UpstreamError
from cortex.translate.conversation import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Measured,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from cortex.wire import converter
from cortex.wire import errors as envelope
from cortex.wire.neuron import Timings
from cortex.wire.sse import Frame

_DONE = b"[DONE]"
_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


def read_answer(body: Any, *, prewarm: bool = False) -> list[Event]:
    """The events of a whole answer, *body* being its parsed JSON. The last one ends it."""
    reader = ChatReader(prewarm=prewarm)
    return reader.read(body) + reader.end()


@attrs.define(eq=False)
class _Call:
    index: int
    id: str = ""
    name: str = ""
    started: bool = False
    waiting: str = ""  # arguments that came before the name


@attrs.define(eq=False)
class ChatReader:
    """Reads one answer: `feed` each frame, then `end` when the stream is over.

    The finish reason is held back until the answer is complete, so that `Finished` is the last
    event and usage comes before it. After `Finished` or `Failed` there are no more events.
    With *prewarm* the answer's text is thrown away: only its prompt was wanted.
    """

    prewarm: bool = attrs.field(default=False, kw_only=True)
    ended: bool = attrs.field(default=False, init=False)
    _started: bool = attrs.field(default=False, init=False)
    _finished: Finished | None = attrs.field(default=None, init=False)
    _calls: dict[int, _Call] = attrs.field(factory=dict, init=False)
    _last_call: int = attrs.field(default=-1, init=False)

    def feed(self, frame: Frame) -> list[Event]:
        """The events that *frame* holds."""
        if self.ended or frame.data is None:
            return []
        if frame.data.strip() == _DONE:
            return self.end()
        try:
            chunk = orjson.loads(frame.data)
        except orjson.JSONDecodeError:
            return self.fail(UpstreamError("the neuron sent an event that is not JSON"))
        return self.read(chunk)

    def read(self, chunk: Any) -> list[Event]:
        """The events of one parsed chunk."""
        if self.ended:
            return []
        if not isinstance(chunk, dict):
            return self.fail(UpstreamError("the neuron sent an event that is not an object"))
        if chunk.get("error"):
            return self.fail(envelope.parse(None, chunk))
        events: list[Event] = []
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage(usage, events)
        choice = _first_choice(chunk.get("choices"))
        if choice is not None:
            if not self._started:
                self._started = True
                events.append(Started())
            delta = choice.get("delta") or choice.get("message")
            if isinstance(delta, dict):
                self._delta(delta, events)
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:  # some say "" where others say null
                self._finish(reason, choice.get("stop_reason"), events)
        timings = chunk.get("timings")
        if isinstance(timings, dict) and not self.ended:
            self._timings(timings, events)
        return events

    def end(self) -> list[Event]:
        """The last event: `Finished` if a finish reason came, `Failed` if not."""
        if self.ended:
            return []
        if self._finished is None:
            return self.fail(UpstreamError("the neuron's answer ended before it was complete"))
        self.ended = True
        return [self._finished]

    def fail(self, error: CortexError) -> list[Event]:
        """End with *error*, which came from this answer or from its transport."""
        if self.ended:
            return []
        self.ended = True
        return [Failed(error)]

    def _usage(self, usage: dict[str, Any], events: list[Event]) -> None:
        prompt = _count(usage.get("prompt_tokens"))
        if prompt is None:
            return
        completion = _count(usage.get("completion_tokens")) or 0
        cached = _count(_member(usage, "prompt_tokens_details", "cached_tokens")) or 0
        reasoning = _count(_member(usage, "completion_tokens_details", "reasoning_tokens"))
        if self.prewarm:
            completion, reasoning = 0, None
        events.append(Usage(prompt, completion, min(cached, prompt), reasoning))

    def _timings(self, timings: dict[str, Any], events: list[Event]) -> None:
        try:
            events.append(Measured(converter.structure(timings, Timings)))
        except BadRequest:
            return  # another server's timings, under the same name

    def _delta(self, delta: dict[str, Any], events: list[Event]) -> None:
        if self.prewarm:
            return
        thinking = delta.get("reasoning_content") or delta.get("reasoning")
        if thinking and isinstance(thinking, str):
            events.append(ThinkingDelta(thinking))
        text = delta.get("content")
        if text and isinstance(text, str):
            events.append(TextDelta(text))
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for call in calls:
                if isinstance(call, dict):
                    self._call_delta(call, events)

    def _call_delta(self, delta: dict[str, Any], events: list[Event]) -> None:
        call = self._call(delta)
        function = delta.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, dict):
            arguments = orjson.dumps(arguments).decode()
        arguments = arguments if isinstance(arguments, str) else ""
        if not call.started:
            call.name = call.name or (name if isinstance(name, str) else "")
            if not call.name:
                call.waiting += arguments
                return
            call.started = True
            arguments = call.waiting + arguments
            events.append(ToolCallStart(call.index, call.id, call.name))
        if arguments:
            events.append(ToolCallDelta(call.index, arguments))

    def _call(self, delta: dict[str, Any]) -> _Call:
        """The call that *delta* belongs to, by its index, else by a new id, else the last one."""
        id_ = delta.get("id")
        id_ = id_ if isinstance(id_, str) else ""
        index = _count(delta.get("index"))
        if index is None:
            last = self._calls.get(self._last_call)
            new = last is None or (id_ and id_ != last.id)
            index = self._last_call + 1 if new else self._last_call
        self._last_call = index
        call = self._calls.setdefault(index, _Call(index))
        call.id = call.id or id_
        return call

    def _finish(self, reason: str, stop: Any, events: list[Event]) -> None:
        known = _REASONS.get(reason)
        if known is None:
            events.extend(self.fail(UpstreamError("the neuron gave up on this answer")))
            return
        matched = stop if isinstance(stop, str) and known is FinishReason.STOP else None
        if self.prewarm:
            known, matched = FinishReason.LENGTH, None
        self._finished = Finished(known, matched)


def _first_choice(choices: Any) -> dict[str, Any] | None:
    """The choice with index 0: dialects read from events have one answer only."""
    if not isinstance(choices, list):
        return None
    for choice in choices:
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            return choice
    return None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _member(value: dict[str, Any], outer: str, inner: str) -> Any:
    found = value.get(outer)
    return found.get(inner) if isinstance(found, dict) else None
