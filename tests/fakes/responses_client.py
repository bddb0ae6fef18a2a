"""A strict reader of Responses event streams: what the pickiest client would accept, no more."""

from __future__ import annotations

import json
from typing import Any

from cortex.wire.sse import FrameReader

# Which events extend and end the text of an item, the member it is in, and its part's type.
DELTAS = {
    "message": ("output_text", "text", "output_text"),
    "reasoning": ("reasoning_text", "text", "reasoning_text"),
    "function_call": ("function_call_arguments", "arguments", None),
    "custom_tool_call": ("custom_tool_call_input", "input", None),
}
PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
}
# Every key of the two schemas, and the types that each value may have.
NONE = type(None)
KEYS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "object": (str,),
    "created_at": (int,),
    "completed_at": (int, NONE),
    "status": (str,),
    "error": (dict, NONE),
    "incomplete_details": (dict, NONE),
    "instructions": (str, NONE),
    "previous_response_id": (str, NONE),
    "model": (str,),
    "output": (list,),
    "tools": (list,),
    "tool_choice": (str, dict),
    "truncation": (str,),
    "parallel_tool_calls": (bool,),
    "text": (dict,),
    "temperature": (int, float),
    "top_p": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "top_logprobs": (int,),
    "reasoning": (dict, NONE),
    "usage": (dict, NONE),
    "max_output_tokens": (int, NONE),
    "max_tool_calls": (int, NONE),
    "store": (bool,),
    "background": (bool,),
    "service_tier": (str,),
    "metadata": (dict,),
    "safety_identifier": (str, NONE),
    "prompt_cache_key": (str, NONE),
}
COUNTS = ("input_tokens", "output_tokens", "total_tokens")


class ResponseFailed(Exception):
    """The stream ended with response.failed."""

    def __init__(self, response: dict[str, Any]) -> None:
        super().__init__(response["error"]["message"])
        self.response = response
        self.code: str = response["error"]["code"]


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events of *stream*, its ``[DONE]`` left out. Asserts the framing and the numbers."""
    reader = FrameReader()
    told = reader.feed(stream)
    frames = [frame for frame in told if (frame.data, frame.event) != (None, None)]
    assert not reader.unfinished
    found: list[dict[str, Any]] = []
    for number, frame in enumerate(frames):
        assert frame.data is not None
        if frame.data == b"[DONE]":
            assert frame.event is None
            assert frame is frames[-1], "an event after [DONE]"
            assert found[-1]["type"] in ("response.completed", "response.incomplete")
            return found
        event = json.loads(frame.data)
        assert event["type"] == frame.event
        assert event["sequence_number"] == number
        found.append(event)
    assert found[-1]["type"] == "response.failed", "no [DONE]"
    return found


def accumulate(stream: bytes) -> dict[str, Any]:
    """The response that *stream* makes. Asserts the protocol; raises `ResponseFailed`."""
    client = Accumulator()
    for event in events_of(stream):
        client.feed(event)
    assert client.final is not None
    if client.final["status"] == "failed":
        raise ResponseFailed(client.final)
    return client.final


def check_response(response: dict[str, Any]) -> None:
    """Assert that *response* has every key, each with a value of its type."""
    for key, types in KEYS.items():
        assert key in response, key
        assert type(response[key]) in types, (key, response[key])
    assert response["object"] == "response"
    assert (response["error"] is not None) is (response["status"] == "failed")
    assert (response["incomplete_details"] is not None) is (response["status"] == "incomplete")
    assert (response["completed_at"] is not None) is (response["status"] == "completed")
    if response["usage"] is not None:
        for key in COUNTS:
            assert type(response["usage"][key]) is int
        assert type(response["usage"]["input_tokens_details"]["cached_tokens"]) is int
        assert type(response["usage"]["output_tokens_details"]["reasoning_tokens"]) is int
    for tool in response["tools"]:
        if tool["type"] == "function":
            assert {"name", "description", "parameters", "strict"} <= tool.keys()
    for item in response["output"]:
        check_item(item)


def check_item(item: dict[str, Any]) -> None:
    """Assert that *item*, which is done, has what its type needs."""
    kind = item["type"]
    assert item["id"].startswith(PREFIXES[kind])
    assert item["status"] in ("completed", "incomplete")
    if kind == "message":
        assert item["role"] == "assistant"
        for part in item["content"]:
            assert part.keys() == {"type", "text", "annotations", "logprobs"}
    elif kind == "reasoning":
        assert item["summary"] == []
        assert [part["type"] for part in item["content"]] == ["reasoning_text"]
    else:
        assert item["call_id"]
        assert isinstance(item["name"], str)


class Accumulator:
    """Builds the output from the deltas, and compares it with what the stream says it is."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.in_progress = False
        self.item: dict[str, Any] | None = None  # the open one, as it was added
        self.text = ""
        self.part: dict[str, Any] | None = None
        self.spoken = False  # the open item's text is done
        self.output: list[dict[str, Any]] = []
        self.final: dict[str, Any] | None = None

    def feed(self, event: dict[str, Any]) -> None:
        assert self.final is None, "an event after the end"
        name = event["type"].removeprefix("response.")
        if self.id is None:
            assert name == "created"
            self.id = event["response"]["id"]
            assert self.id.startswith("resp_")
        if "response" in event:
            response = event["response"]
            assert response["id"] == self.id
            check_response(response)
            getattr(self, f"on_{name}")(response)
            return
        assert self.in_progress
        if name.startswith(("output_item", "content_part")):
            getattr(self, "on_" + name.replace(".", "_"))(event)
        else:
            self.on_text(name, event)

    def on_created(self, response: dict[str, Any]) -> None:
        assert (response["status"], response["output"]) == ("in_progress", [])

    def on_in_progress(self, response: dict[str, Any]) -> None:
        assert not self.in_progress
        self.in_progress = True
        assert (response["status"], response["output"]) == ("in_progress", [])

    def on_completed(self, response: dict[str, Any]) -> None:
        assert response["status"] == "completed"
        assert response["usage"] is not None
        assert all(item["status"] == "completed" for item in response["output"])
        self.end(response)

    def on_incomplete(self, response: dict[str, Any]) -> None:
        assert response["status"] == "incomplete"
        self.end(response)

    def on_failed(self, response: dict[str, Any]) -> None:
        assert response["status"] == "failed"
        assert response["output"] == self.output
        self.final = response

    def end(self, response: dict[str, Any]) -> None:
        assert self.item is None, "the response ended before its item"
        assert response["output"] == self.output
        assert self.output, "an empty answer"
        self.final = response

    def on_output_item_added(self, event: dict[str, Any]) -> None:
        assert self.item is None, "two items at a time"
        assert event["output_index"] == len(self.output)
        self.item, self.text, self.part, self.spoken = event["item"], "", None, False
        assert self.item["status"] == "in_progress"
        assert self.item["id"].startswith(PREFIXES[self.item["type"]])
        assert self.item["id"] not in {item["id"] for item in self.output}

    def placed(self, event: dict[str, Any]) -> dict[str, Any]:
        assert self.item is not None
        assert event["item_id"] == self.item["id"]
        assert event["output_index"] == len(self.output)
        assert ("content_index" in event) is (DELTAS[self.item["type"]][2] is not None)
        return self.item

    def on_content_part_added(self, event: dict[str, Any]) -> None:
        item = self.placed(event)
        assert self.part is None
        self.part = event["part"]
        assert (self.part["type"], self.part["text"]) == (DELTAS[item["type"]][2], "")

    def on_text(self, name: str, event: dict[str, Any]) -> None:
        item = self.placed(event)
        stem, member, part = DELTAS[item["type"]]
        assert (self.part is not None) is (part is not None)
        assert not self.spoken
        if name == f"{stem}.delta":
            assert event["delta"], "a delta of nothing"
            self.text += event["delta"]
        else:
            assert name == f"{stem}.done"
            assert event[member] == self.text
            self.spoken = True
        assert ("logprobs" in event) is (item["type"] == "message")

    def on_content_part_done(self, event: dict[str, Any]) -> None:
        self.placed(event)
        assert self.spoken
        assert self.part is not None
        self.part["text"] = self.text
        assert event["part"] == self.part

    def on_output_item_done(self, event: dict[str, Any]) -> None:
        assert self.spoken
        assert self.item is not None
        assert event["output_index"] == len(self.output)
        item = event["item"]
        built = {**self.item, "status": item["status"]}
        if self.part is not None:
            built["content"] = [self.part]
        else:
            built[DELTAS[item["type"]][1]] = self.text
        if "encrypted_content" in built:
            built["encrypted_content"] = item["encrypted_content"]
        assert item == built
        check_item(item)
        if item["type"] == "function_call" and item["status"] == "completed":
            assert item["arguments"].strip()
        calls = [each["call_id"] for each in self.output if "call_id" in each]
        assert item.get("call_id") not in calls
        self.output.append(item)
        self.item = None
