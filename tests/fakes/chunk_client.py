"""A strict reader of chat completion streams: what the pickiest client would accept, no more.

The rules are `reference/api.md` 1.3: the role first, then deltas, then one finish a choice, then
the usage where it was asked for, then ``[DONE]``; or, at any point, an error and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

FINISHES = ("stop", "length", "tool_calls", "content_filter", "function_call")


class StreamError(Exception):
    """The stream carried an error."""


@attrs.define(eq=False)
class Choice:
    """What the deltas of one choice have added up to."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = attrs.field(factory=list)
    finish_reason: str | None = None
    begun: bool = False

    def feed(self, delta: dict[str, Any], finish: str | None) -> None:
        assert self.finish_reason is None, "a choice goes on after its end"
        if not self.begun:
            assert delta.get("role") == "assistant", "a choice does not begin with its role"
            self.begun = True
        else:
            assert "role" not in delta, "the role is told twice"
        assert not (delta.get("content") and delta.get("reasoning_content")), "mixed up"
        if delta.get("reasoning_content"):
            assert not self.content, "reasoning after the answer"
        self.content += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            self._call(call)
        if finish is not None:
            assert finish in FINISHES
            assert not delta, "a finish with a delta"
            self.finish_reason = finish
            if self.calls:
                assert finish in ("tool_calls", "length"), "calls that a client never runs"

    def _call(self, call: dict[str, Any]) -> None:
        index = call["index"]
        function = call["function"]
        if index == len(self.calls):
            assert call["type"] == "function"
            assert call["id"] not in [each["id"] for each in self.calls]
            self.calls.append({"id": call["id"], "name": function["name"], "arguments": ""})
        else:
            assert 0 <= index < len(self.calls), "a gap between calls"
            assert not {"id", "type"} & set(call), "the head is told twice"
            assert "name" not in function
        assert isinstance(function["arguments"], str)
        self.calls[index]["arguments"] += function["arguments"]


@attrs.define(eq=False)
class ChunkClient:
    """``feed`` each event's data, parsed; ``[DONE]`` as that string."""

    usage_wanted: bool = False
    choices: list[Choice] = attrs.field(factory=list)
    usage: dict[str, Any] | None = None
    head: tuple[Any, ...] | None = None
    done: bool = False

    @property
    def model(self) -> str:
        assert self.head is not None
        return self.head[2]

    def feed(self, data: Any) -> None:
        assert not self.done, "something after the end"
        if data == "[DONE]":
            self.done = True
            assert self.choices
            assert all(choice.finish_reason for choice in self.choices), "an end without a finish"
            assert (self.usage is not None) == self.usage_wanted
            return
        if "error" in data:
            self.done = True
            raise StreamError(data["error"]["message"])
        head = (data["id"], data["created"], data["model"], data["object"])
        assert self.head in (None, head), "the head changes"
        self.head = head
        assert data["object"] == "chat.completion.chunk"
        assert self.usage is None, "a chunk after the usage"
        assert isinstance(data["choices"], list)
        if not data["choices"]:
            assert self.usage_wanted, "usage that nobody asked for"
            self.usage = data["usage"]
            return
        if self.usage_wanted:
            assert data["usage"] is None
        else:
            assert data.get("usage") is None
        for choice in data["choices"]:
            while len(self.choices) <= choice["index"]:
                self.choices.append(Choice())
            self.choices[choice["index"]].feed(choice["delta"], choice["finish_reason"])


def follow(events: Iterable[Any], *, usage: bool = False, choices: int = 1) -> ChunkClient:
    """The answer in *events*, a whole stream. Asserts the protocol; `StreamError` on an error."""
    client = ChunkClient(usage)
    for event in events:
        client.feed(event)
    assert client.done
    assert len(client.choices) == choices
    return client
