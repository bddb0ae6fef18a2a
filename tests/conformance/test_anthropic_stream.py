"""AS: Anthropic's streams, through a reader that holds them to the protocol."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from conformance.checks import ANTHROPIC_TOOL, MESSAGES, Server, call, call_deltas, told
from fakes.anthropic_client import StreamError, accumulate
from fakes.neuron import Reply, chunk, error_reply

THINKING = [{"reasoning_content": "h"}, {"reasoning_content": "m"}]
TEXT = [{"content": "Hello"}, {"content": " world"}]
ANSWERS: dict[str, tuple[list[dict[str, Any]], str, list[str]]] = {
    "AS01-text": (TEXT, "stop", ["text"]),
    "AS01-thinking": (THINKING + TEXT, "stop", ["thinking", "text"]),
    "AS01-tool": (TEXT + call_deltas("f", '{"a": 1}'), "tool_calls", ["text", "tool_use"]),
    "AS01-three": (
        [delta for n in range(3) for delta in call_deltas(f"f{n}", '{"a": 1}', n)],
        "tool_calls",
        ["tool_use"] * 3,
    ),
    "AS06": (call_deltas("f", ""), "tool_calls", ["tool_use"]),
    "AS12": (call_deltas("f", "{}"), "tool_calls", ["tool_use"]),
    "AS13": ([{"content": "\n\n"}, *call_deltas("f", "{}")], "tool_calls", ["tool_use"]),
}


@pytest.mark.parametrize(("deltas", "finish", "kinds"), ANSWERS.values(), ids=ANSWERS.keys())
def test_as01_as03_the_order_of_a_stream(
    scripted: Server, deltas: Any, finish: str, kinds: list[str]
) -> None:
    scripted.streams(*deltas, finish=finish)
    message = scripted.accumulated(tools=[ANTHROPIC_TOOL])
    assert [block["type"] for block in message["content"]] == kinds
    assert message["stop_reason"] == ("tool_use" if finish == "tool_calls" else "end_turn")
    assert message["stop_sequence"] is None
    assert not message.get("container")
    assert not message.get("stop_details")


def test_as02_every_event_is_named_twice(scripted: Server) -> None:
    raw = scripted.gateway.raw_stream(MESSAGES, scripted.message_body()).text
    for frame in raw.strip().split("\n\n"):
        name, data = frame.split("\n")
        assert data.startswith('data: {"type":"' + name.removeprefix("event: ") + '"')


def test_as04_usage_is_whole_at_the_end(real: Server) -> None:
    streamed, whole = real.accumulated(temperature=0), real.message(temperature=0)
    for usage in (streamed["usage"], whole["usage"]):
        usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    assert streamed["usage"] == whole["usage"]
    assert streamed["content"] == whole["content"]


def test_as05_a_streamed_call_is_the_whole_ones(scripted: Server) -> None:
    arguments = '{"city": "Zürich", "nested": {"a": [1, "\\"x"]}}'
    scripted.streams(*call_deltas("f", arguments, size=1), finish="tool_calls")
    streamed = scripted.accumulated()
    scripted.answers({"tool_calls": [call("f", arguments)]}, "tool_calls")
    assert streamed["content"] == scripted.message()["content"]


def test_as07_a_thinking_block_is_signed(scripted: Server) -> None:
    scripted.streams(*THINKING, *TEXT)
    raw = scripted.gateway.raw_stream(MESSAGES, scripted.message_body()).content
    message = accumulate(raw)
    assert message["content"][0]["signature"]
    assert raw.index(b"signature_delta") < raw.index(b"content_block_stop")


def test_as09_a_failure_within_is_an_event_and_no_stop(scripted: Server) -> None:
    scripted.streams(*TEXT, finish=None)
    response = scripted.gateway.raw_stream(MESSAGES, scripted.message_body())
    with pytest.raises(StreamError) as caught:
        accumulate(response.content)
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"] == response.headers["request-id"]
    assert b"message_stop" not in response.content
    with (
        anthropic.Anthropic(base_url=scripted.gateway.url, api_key="none", max_retries=0) as sdk,
        pytest.raises(anthropic.APIStatusError),
        sdk.messages.stream(**scripted.message_body()) as stream,
    ):
        list(stream)


def test_as11_a_failure_before_is_a_status(scripted: Server) -> None:
    scripted.says(error_reply(500, "internal_error"))
    response = scripted.post(MESSAGES, scripted.message_body(stream=True))
    assert told(response, 500, anthropic=True)["type"] == "api_error"


def test_as14_what_stopped_it_is_in_no_delta(scripted: Server) -> None:
    frames = [chunk("m", {"content": "one "})]
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "STOP"}
    frames += [chunk("m", None, choices=[choice]), b"data: [DONE]\n\n"]
    scripted.says(Reply(frames=frames, content_type="text/event-stream"))
    raw = scripted.gateway.raw_stream(MESSAGES, scripted.message_body(stop_sequences=["STOP"]))
    message = accumulate(raw.content)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "STOP")
    assert message["content"] == [{"type": "text", "text": "one "}]


def test_as15_the_sdk_makes_the_same_message_of_it(scripted: Server) -> None:
    deltas = THINKING + TEXT + call_deltas("f", '{"a": 1}')
    scripted.streams(*deltas, finish="tool_calls")
    ours = scripted.accumulated(tools=[ANTHROPIC_TOOL])
    with (
        anthropic.Anthropic(base_url=scripted.gateway.url, api_key="none") as sdk,
        sdk.messages.stream(**scripted.message_body(tools=[ANTHROPIC_TOOL])) as stream,
    ):
        theirs = stream.get_final_message()
    assert [block.type for block in theirs.content] == ["thinking", "text", "tool_use"]
    assert theirs.content[0].thinking == ours["content"][0]["thinking"] == "hm"
    assert theirs.content[1].text == ours["content"][1]["text"] == "Hello world"
    assert theirs.content[2].input == ours["content"][2]["input"] == {"a": 1}
    assert theirs.usage.output_tokens == ours["usage"]["output_tokens"]


def test_as17_a_stream_is_one_whatever_is_accepted(scripted: Server) -> None:
    headers = {"accept": "application/json"}
    response = scripted.gateway.raw_stream(MESSAGES, scripted.message_body(), headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert accumulate(response.content)
