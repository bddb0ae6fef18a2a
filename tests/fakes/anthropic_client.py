"""A strict reader of Anthropic event streams: what the pickiest client would accept, no more."""

from __future__ import annotations

import json
from typing import Any

from cortex.wire.sse import FrameReader


class StreamError(Exception):
    """The stream carried an error event."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body["error"]["message"])
        self.body = body


def accumulate(stream: bytes) -> dict[str, Any]:
    """The message that *stream* makes. Asserts the protocol; raises `StreamError` on an error."""
    reader = FrameReader()
    frames = reader.feed(stream)
    assert not reader.unfinished
    client = Accumulator()
    for frame in frames:
        assert frame.event is not None
        assert frame.data is not None
        client.feed(frame.event, json.loads(frame.data))
    assert client.stopped, "no message_stop"
    assert client.message is not None
    return client.message


class Accumulator:
    def __init__(self) -> None:
        self.message: dict[str, Any] | None = None
        self.open: dict[str, Any] | None = None
        self.partial_json = ""
        self.signed = False
        self.ended = False
        self.stopped = False

    def feed(self, name: str, data: dict[str, Any]) -> None:
        assert not self.stopped, f"{name} after message_stop"
        assert data["type"] == name
        if name == "error":
            self.stopped = True
            raise StreamError(data)
        if name == "message_start":
            assert self.message is None
            self.message = data["message"]
            assert self.message["content"] == []
            return
        assert self.message is not None, f"{name} before message_start"
        if name == "ping":
            return
        assert not self.ended or name == "message_stop"
        getattr(self, f"on_{name}")(data)

    def on_content_block_start(self, data: dict[str, Any]) -> None:
        assert self.open is None, "two blocks open"
        content = self.message["content"]
        assert data["index"] == len(content), "a gap between indexes"
        self.open = data["content_block"]
        self.partial_json, self.signed = "", False
        content.append(self.open)

    def on_content_block_delta(self, data: dict[str, Any]) -> None:
        assert self.open is not None, "a delta without a block"
        assert data["index"] == len(self.message["content"]) - 1
        delta, kind = data["delta"], self.open["type"]
        assert not self.signed, "a delta after the signature"
        if delta["type"] == "text_delta":
            assert kind == "text"
            assert delta["text"]
            self.open["text"] += delta["text"]
        elif delta["type"] == "thinking_delta":
            assert kind == "thinking"
            assert delta["thinking"]
            self.open["thinking"] += delta["thinking"]
        elif delta["type"] == "signature_delta":
            assert kind == "thinking"
            self.open["signature"] = delta["signature"]
            self.signed = True
        else:
            assert delta["type"] == "input_json_delta"
            assert kind == "tool_use"
            self.partial_json += delta["partial_json"]

    def on_content_block_stop(self, data: dict[str, Any]) -> None:
        assert self.open is not None
        assert data["index"] == len(self.message["content"]) - 1
        if self.open["type"] == "tool_use":
            self.open["input"] = json.loads(self.partial_json or "{}")
            assert isinstance(self.open["input"], dict)
        if self.open["type"] == "text":
            assert self.open["text"].strip(), "an empty text block"
        if self.open["type"] == "thinking":
            assert self.signed, "a thinking block without its signature"
            assert self.open["signature"]
        self.open = None

    def on_message_delta(self, data: dict[str, Any]) -> None:
        assert self.open is None, "a block is still open"
        self.ended = True
        self.message.update(data["delta"])
        self.message["usage"].update(data["usage"])

    def on_message_stop(self, data: dict[str, Any]) -> None:
        assert self.ended, "message_stop without message_delta"
        self.stopped = True
