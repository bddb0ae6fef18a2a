from __future__ import annotations

import importlib

import anthropic
import pytest
from fakes.anthropic_client import StreamError, accumulate
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex import errors
from cortex.translate.anthropic_blocks import BlockWriter, message
from cortex.translate.anthropic_stream import AnthropicEncoder
from cortex.translate.conversation import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)

KEY = b"k" * 32
many = settings(max_examples=100, deadline=None)


def encoder(**options) -> AnthropicEncoder:
    writer = BlockWriter("msg_1", signature_key=KEY, **options)
    return AnthropicEncoder("asked", writer, "req_1", input_tokens=7)


def whole(events: list[Event], **options) -> dict:
    writer = BlockWriter("msg_1", signature_key=KEY, **options)
    return message(events, writer, model="asked", estimate=7)


STOP = Finished(FinishReason.STOP)
TEXT = [Started(), TextDelta("Hel"), TextDelta("lo"), Usage(10, 2, 4), STOP]
TOOL = [
    Started(),
    ThinkingDelta("Let me see. "),
    ThinkingDelta("The weather."),
    TextDelta("\n\n"),
    ToolCallStart(0, "call_1", "weather"),
    ToolCallDelta(0, '{"city": "Par'),
    ToolCallDelta(0, 'is"}'),
    ToolCallStart(1, "call.2", "now"),
    Usage(100, 20, 96, 8),
    Finished(FinishReason.TOOL_CALLS),
]

texts = st.text(max_size=4) | st.sampled_from([" ", "\n\n", "", "a", "<b>", "é…🙂"])
fragments = texts | st.sampled_from(["{", "}", '{"a":1}', '{"a":', "1}", "[]", "{}", "12345678901"])
indexes = st.integers(0, 3)
deltas = st.one_of(
    st.just(Started()),
    texts.map(TextDelta),
    texts.map(ThinkingDelta),
    st.builds(ToolCallStart, indexes, st.sampled_from(["", "call_1", "a.b", "call_2"]), texts),
    st.builds(ToolCallDelta, indexes, fragments),
    st.builds(Usage, *[st.integers(0, 99)] * 3, st.none() | st.integers(0, 9)),
)
finishes = st.builds(Finished, st.sampled_from(FinishReason), st.none() | st.just("END"))
answers = st.builds(lambda body, end: [*body, end], st.lists(deltas, max_size=25), finishes)


@many
@given(answers, st.booleans())
def test_a_stream_accumulates_to_the_whole_message(events, shown):
    assert accumulate(encoder(shown=shown).feed_all(events)) == whole(events, shown=shown)


@many
@given(st.lists(deltas | finishes | st.just(Failed(errors.Overloaded("busy"))), max_size=25))
def test_whatever_happens_the_protocol_holds_and_ends_once(events):
    live = encoder()
    stream = live.start() + b"".join(live.feed(event) + live.ping() for event in events)
    stream += live.fail(errors.DeviceLost("gone")) + live.ping() + live.feed(TextDelta("late"))
    end = next((each for each in events if isinstance(each, Finished | Failed)), None)
    if isinstance(end, Finished):
        accumulate(stream)
    else:
        with pytest.raises(StreamError, match="busy" if end else "gone"):
            accumulate(stream)


@many
@given(st.lists(texts.map(TextDelta) | texts.map(ThinkingDelta), max_size=12))
def test_text_is_told_whole_apart_from_blocks_of_white_space(deltas):
    found = whole([*deltas, STOP])["content"]
    said = "".join(each.text for each in deltas if isinstance(each, TextDelta))
    told = "".join(block.get("text", "") for block in found)
    assert "".join(told.split()) == "".join(said.split())


def test_a_plain_answer():
    assert whole(TEXT) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "asked",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 2,
            "service_tier": "standard",
        },
    }


def test_thinking_then_calls_without_an_empty_text_block():
    found = whole(TOOL)
    assert [block["type"] for block in found["content"]] == ["thinking", "tool_use", "tool_use"]
    assert found["content"][0]["thinking"] == "Let me see. The weather."
    assert found["content"][1]["input"] == {"city": "Paris"}
    assert found["content"][1]["id"] == "call_1"
    assert found["content"][2]["input"] == {}
    assert found["content"][2]["id"].startswith("toolu_")
    assert found["stop_reason"] == "tool_use"
    assert found["usage"]["output_tokens_details"] == {"thinking_tokens": 8}


def test_the_signature_depends_on_the_text_and_is_kept_when_the_text_is_not_shown():
    shown, hidden = whole(TOOL)["content"][0], whole(TOOL, shown=False)["content"][0]
    assert hidden["thinking"] == ""
    assert hidden["signature"] == shown["signature"]
    other = whole([ThinkingDelta("else"), STOP])["content"][0]
    assert other["signature"] != shown["signature"]


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finished(FinishReason.STOP), "end_turn", None),
        (Finished(FinishReason.STOP, "END"), "stop_sequence", "END"),
        (Finished(FinishReason.LENGTH), "max_tokens", None),
        (Finished(FinishReason.LENGTH, "END"), "max_tokens", None),
        (Finished(FinishReason.CONTENT_FILTER), "refusal", None),
        (Finished(FinishReason.TOOL_CALLS), "end_turn", None),
    ],
)
def test_stop_reasons(finish, reason, sequence):
    found = whole([TextDelta("x"), finish])
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)


def test_a_call_makes_a_stop_a_tool_use():
    assert whole([ToolCallStart(0, "a", "f"), STOP])["stop_reason"] == "tool_use"


def test_a_call_that_was_cut_off_is_not_told():
    events = [TextDelta("x"), ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"path": "/et')]
    found = whole([*events, Finished(FinishReason.LENGTH)])
    assert [block["type"] for block in found["content"]] == ["text"]
    assert found["stop_reason"] == "max_tokens"


def test_a_malformed_call_is_told_as_text():
    found = whole([ToolCallStart(0, "a", "f"), ToolCallDelta(0, "{oops"), STOP])
    assert found["content"] == [{"type": "text", "text": '{"name":"f","arguments":"{oops"}'}]
    assert found["stop_reason"] == "end_turn"


def test_calls_whose_arguments_come_interleaved_are_told_one_after_the_other():
    events = [
        ToolCallStart(0, "a", "f"),
        ToolCallDelta(0, '{"x":'),
        ToolCallStart(1, "b", "g"),
        ToolCallDelta(1, '{"y":2}'),
        ToolCallDelta(0, "1}"),
        Finished(FinishReason.TOOL_CALLS),
    ]
    found = accumulate(encoder().feed_all(events))["content"]
    assert [(block["id"], block["input"]) for block in found] == [("a", {"x": 1}), ("b", {"y": 2})]


def test_a_count_before_the_start_replaces_the_estimate():
    live = encoder()
    assert live.feed(Usage(12, 0, 5)) == b""
    assert b'"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":5' in (
        live.feed(Started())
    )
    assert b'"input_tokens":7' in encoder().start()


def test_pings_are_possible_only_between_start_and_stop():
    live = encoder()
    assert live.ping() == b""
    live.start()
    assert live.ping() == b'event: ping\ndata: {"type":"ping"}\n\n'
    live.feed(STOP)
    assert live.ping() == b""


def test_an_error_before_the_message_needs_no_message():
    live = encoder()
    frame = live.feed(Failed(errors.Overloaded("busy")))
    assert frame == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
        b'"message":"busy"},"request_id":"req_1"}\n\n'
    )
    assert live.start() == b""


def test_a_whole_message_raises_the_error_of_a_failed_answer():
    with pytest.raises(errors.DeviceLost):
        whole([TextDelta("x"), Failed(errors.DeviceLost("gone"))])
    with pytest.raises(errors.UpstreamError):
        whole([TextDelta("x")])


# The HTTP library that this version of the SDK is made for.
httpx = importlib.import_module(anthropic.DefaultHttpxClient.__mro__[1].__module__.split(".")[0])


def sdk(stream: bytes) -> anthropic.Anthropic:
    def answer(_):
        kind = {"content-type": "text/event-stream; charset=utf-8"}
        return httpx.Response(200, headers=kind, content=stream)

    return anthropic.Anthropic(
        api_key="k",
        base_url="http://fake",
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(answer)),
    )


ASK = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("events", [TEXT, TOOL], ids=["text", "tools"])
def test_the_sdk_accumulates_the_whole_message(events):
    with sdk(encoder().feed_all(events)) as client, client.messages.stream(**ASK) as stream:
        found = stream.get_final_message().to_dict()
    expected = whole(events)
    for block in [*found["content"], *expected["content"]]:
        block.pop("parsed_output", None)
    assert found["content"] == expected["content"]
    assert found["stop_reason"] == expected["stop_reason"]
    usage = {key: value for key, value in found["usage"].items() if value is not None}
    assert usage == expected["usage"]


def test_the_sdk_raises_an_error_that_comes_within_the_stream():
    live = encoder()
    broken = live.feed_all(TEXT[:2]) + live.fail(errors.DeviceLost("the device is gone"))
    with (
        sdk(broken) as client,
        pytest.raises(anthropic.APIStatusError, match="the device is gone"),
        client.messages.stream(**ASK) as stream,
    ):
        stream.get_final_message()
