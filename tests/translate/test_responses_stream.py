from __future__ import annotations

import pytest
from fakes.responses_client import ResponseFailed, accumulate, check_response, events_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex import errors
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
from cortex.translate.responses import Asked, read_response
from cortex.translate.responses_items import ItemWriter
from cortex.translate.responses_object import response_for, whole_response
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.translate.sealed_reasoning import unseal

many = settings(max_examples=100, deadline=None)
TOOLS = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}},
    {"type": "custom", "name": "patch"},
]


def asked(**fields) -> Asked:
    return read_response({"model": "asked", "input": "Hi", "tools": TOOLS, **fields})


def writer_for(request: Asked) -> ItemWriter:
    return ItemWriter("resp_1", custom=request.tools.custom, sealed=request.sealed)


def encoder(**fields) -> ResponsesEncoder:
    request = asked(**fields)
    return ResponsesEncoder(response_for(request, "resp_1", 100), writer_for(request), lambda: 200)


def whole(events: list[Event], **fields) -> dict:
    request = asked(**fields)
    response = response_for(request, "resp_1", 100)
    return whole_response(events, response, writer_for(request), 200)


def told(events: list[Event], **fields) -> list[tuple]:
    """The items of the answer: type, status and text."""
    return [
        (item["type"], item["status"], text_of(item)) for item in whole(events, **fields)["output"]
    ]


def text_of(item: dict) -> str:
    if "content" in item:
        return "".join(part["text"] for part in item["content"])
    return item["input"] if "input" in item else item["arguments"]


STOP = Finished(FinishReason.STOP)
CALLS = Finished(FinishReason.TOOL_CALLS)
CUT = Finished(FinishReason.LENGTH)
SEALED = {"include": ["reasoning.encrypted_content"]}
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
    CALLS,
]

texts = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
    [" ", "\n\n", "", "a", "<b>", "é…🙂"]
)
fragments = texts | st.sampled_from(
    ["{", "}", '{"a":1}', '{"a":', "1}", "[]", "{}", '{"input":"x', 'y"}', "12345678901"]
)
indexes = st.integers(0, 3)
deltas = st.one_of(
    st.just(Started()),
    texts.map(TextDelta),
    texts.map(ThinkingDelta),
    st.builds(
        ToolCallStart,
        indexes,
        st.sampled_from(["", "call_1", "a.b", "call_2"]),
        st.sampled_from(["weather", "patch", "none such"]),
    ),
    st.builds(ToolCallDelta, indexes, fragments),
    st.builds(Usage, *[st.integers(0, 99)] * 3, st.none() | st.integers(0, 9)),
)
finishes = st.builds(Finished, st.sampled_from(FinishReason), st.none() | st.just("END"))
answers = st.builds(lambda body, end: [*body, end], st.lists(deltas, max_size=25), finishes)


@many
@given(answers, st.sampled_from([{}, SEALED]))
def test_a_stream_accumulates_to_the_whole_response(events, fields):
    assert accumulate(encoder(**fields).feed_all(events)) == whole(events, **fields)


@many
@given(st.lists(deltas | finishes | st.just(Failed(errors.Overloaded("busy"))), max_size=25))
def test_whatever_happens_the_protocol_holds_and_ends_once(events):
    live = encoder()
    stream = live.start() + b"".join(live.feed(event) + live.keep_alive() for event in events)
    stream += live.fail(errors.DeviceLost("gone")) + live.keep_alive()
    stream += live.feed(TextDelta("late")) + live.start()
    end = next((each for each in events if isinstance(each, Finished | Failed)), None)
    if isinstance(end, Finished):
        check_response(accumulate(stream))
    else:
        with pytest.raises(ResponseFailed, match="busy" if end else "gone"):
            accumulate(stream)


@many
@given(st.lists(texts.map(TextDelta) | texts.map(ThinkingDelta), max_size=12))
def test_text_is_told_whole_apart_from_items_of_white_space(deltas):
    found = whole([*deltas, STOP])["output"]
    said = "".join(each.text for each in deltas if isinstance(each, TextDelta))
    told = "".join(text_of(item) for item in found if item["type"] == "message")
    assert "".join(told.split()) == "".join(said.split())


@many
@given(
    st.permutations([(0, '{"a":'), (0, "1}"), (1, '{"b":'), (1, "2}"), (2, "{}")]).filter(
        lambda pieces: (
            [text for at, text in pieces if at == 0] == ['{"a":', "1}"]
            and [text for at, text in pieces if at == 1] == ['{"b":', "2}"]
        )
    )
)
def test_calls_that_come_interleaved_are_told_one_after_the_other(pieces):
    events: list[Event] = []
    for at, text in pieces:
        events += [ToolCallStart(at, f"call_{at}", "weather"), ToolCallDelta(at, text)]
    found = accumulate(encoder().feed_all([*events, CALLS]))["output"]
    by_id = {item["call_id"]: item["arguments"] for item in found}
    assert by_id == {"call_0": '{"a":1}', "call_1": '{"b":2}', "call_2": "{}"}


def test_a_plain_answer_in_a_stream():
    live = encoder()
    names = [event["type"] for event in events_of(live.feed_all(TEXT))]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_plain_answer():
    found = whole(TEXT)
    check_response(found)
    assert (found["id"], found["model"], found["status"]) == ("resp_1", "asked", "completed")
    assert (found["created_at"], found["completed_at"]) == (100, 200)
    [item] = found["output"]
    assert item == {
        "id": item["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert found["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }


def test_reasoning_then_calls_without_an_empty_message():
    found = whole(TOOL)
    assert [item["type"] for item in found["output"]] == [
        "reasoning",
        "function_call",
        "function_call",
    ]
    reasoning, first, second = found["output"]
    assert reasoning["content"][0]["text"] == "Let me see. The weather."
    assert "encrypted_content" not in reasoning
    assert (first["call_id"], first["arguments"]) == ("call_1", '{"city": "Paris"}')
    assert second["call_id"].startswith("call_")
    assert second["call_id"] != "call.2"  # a dot is more than some clients take
    assert second["arguments"] == "{}"
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 8}


def test_arguments_are_told_while_they_are_written():
    live = encoder()
    live.feed_all([ToolCallStart(0, "call_1", "weather"), ToolCallDelta(0, '{"a"')])
    assert b'"delta":":1}"' in live.feed(ToolCallDelta(0, ":1}"))


def test_reasoning_is_sealed_where_it_was_asked_for():
    stream = encoder(**SEALED).feed_all(TOOL)
    added = next(e for e in events_of(stream) if e["type"] == "response.output_item.added")
    assert added["item"]["encrypted_content"] is None
    done = accumulate(stream)["output"][0]
    assert unseal(done["encrypted_content"]) == "Let me see. The weather."


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "*** Begin\\n"}', "*** Begin\n"),
        ('{"patch": "one text by another name"}', "one text by another name"),
        ('{"a": "x", "b": "y"}', '{"a": "x", "b": "y"}'),
        ('{"input": 5}', '{"input": 5}'),
        ("*** Begin", "*** Begin"),
        ("[1]", "[1]"),
        ("", ""),
        ("{}", ""),
    ],
)
def test_a_custom_tools_call_is_its_text(arguments, text):
    events = [ToolCallStart(0, "call_1", "patch"), ToolCallDelta(0, arguments), CALLS]
    [item] = accumulate(encoder().feed_all(events))["output"]
    assert item == {
        "id": item["id"],
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "patch",
        "input": text,
    }


def test_half_of_a_custom_tools_call_is_not_told():
    events = [
        TextDelta("x"),
        ToolCallStart(0, "call_1", "patch"),
        ToolCallDelta(0, '{"input": "rm -r /tm'),
    ]
    assert told([*events, CUT]) == [("message", "completed", "x")]
    assert b"call_1" not in encoder().feed_all([*events, CUT])


@pytest.mark.parametrize(
    ("events", "items"),
    [
        ([TextDelta("Hel")], [("message", "incomplete", "Hel")]),
        ([ThinkingDelta("Hm")], [("reasoning", "incomplete", "Hm")]),
        ([], [("message", "incomplete", "")]),
        (
            [TextDelta("x"), ToolCallStart(0, "a", "weather"), ToolCallDelta(0, '{"a')],
            [("message", "completed", "x"), ("function_call", "incomplete", '{"a')],
        ),
        (
            [ToolCallStart(0, "a", "weather"), ToolCallDelta(0, '{"a":1}')],
            [("function_call", "completed", '{"a":1}')],
        ),
    ],
)
def test_an_answer_that_was_cut_off_is_incomplete(events, items):
    found = accumulate(encoder().feed_all([*events, CUT]))
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told([*events, CUT]) == items


def test_an_answer_that_was_filtered_is_incomplete():
    found = whole([TextDelta("x"), Finished(FinishReason.CONTENT_FILTER)])
    assert found["incomplete_details"] == {"reason": "content_filter"}


def test_an_answer_of_nothing_is_an_empty_message():
    assert told([TextDelta("\n"), STOP]) == [("message", "completed", "")]


def test_a_malformed_call_is_told_as_it_was_written():
    events = [ToolCallStart(0, "a", "weather"), ToolCallDelta(0, "{oops"), STOP]
    assert told(events) == [("function_call", "completed", "{oops")]


def test_text_that_comes_before_a_calls_end_waits_for_it():
    events = [
        ToolCallStart(0, "a", "weather"),
        ToolCallDelta(0, '{"x":'),
        TextDelta("then "),
        TextDelta("text"),
        ToolCallDelta(0, "1}"),
    ]
    live = encoder()
    assert b"then" not in live.feed_all(events[:4])
    stream = live.feed(events[4])
    assert b'"delta":"then text"' in stream
    assert told([*events, CALLS]) == [
        ("function_call", "completed", '{"x":1}'),
        ("message", "completed", "then text"),
    ]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.ContextLengthExceeded("too long"), "context_length_exceeded", "too long"),
        (errors.RateLimited("no budget", code="insufficient_quota"), "insufficient_quota", "no b"),
        (
            errors.RateLimited("slow down", retry_after=11.05),
            "rate_limit_exceeded",
            r"slow down; try again in 11\.05s",
        ),
        (errors.Overloaded("full"), "rate_limit_exceeded", "full; try again in 2s"),
        (errors.TemplateError("no tools"), "invalid_prompt", "no tools"),
        (errors.DeviceLost("gone"), "server_error", "gone"),
        (errors.UpstreamError("reset"), "server_error", "reset"),
    ],
)
@pytest.mark.parametrize("before", [[], TEXT[:3]], ids=["at once", "within a message"])
def test_a_failure_is_told_by_a_code_and_ends_the_stream(error, code, message, before):
    live = encoder()
    stream = live.feed_all(before) + live.feed(Failed(error))
    with pytest.raises(ResponseFailed, match=message) as caught:
        accumulate(stream)
    assert caught.value.code == code
    assert caught.value.response["output"] == []
    assert b"[DONE]" not in stream


def test_keep_alives_are_comments_and_end_with_the_stream():
    live = encoder()
    assert live.keep_alive() == b": keep-alive\n\n"
    live.feed(STOP)
    assert live.keep_alive() == b""


def test_a_whole_response_raises_the_error_of_a_failed_answer():
    with pytest.raises(errors.DeviceLost):
        whole([TextDelta("x"), Failed(errors.DeviceLost("gone"))])
    with pytest.raises(errors.UpstreamError):
        whole([TextDelta("x")])
