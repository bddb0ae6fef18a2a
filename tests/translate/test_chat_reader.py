from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex import errors
from cortex.translate.chat_reader import ChatReader, read_answer
from cortex.translate.conversation import (
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
from cortex.wire import errors as envelope
from cortex.wire.sse import DONE, KEEP_ALIVE, FrameReader

many = settings(max_examples=150, deadline=None)


def stream(*chunks, done=True) -> bytes:
    frames = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    return b"".join(frames) + (DONE if done else b"")


def read(data: bytes, **options):
    frames, reader = FrameReader(), ChatReader(**options)
    events = [event for frame in frames.feed(data) for event in reader.feed(frame)]
    return events + reader.end()


def chunk(delta=None, finish=None, **fields):
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **fields}


ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
COUNT = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
USAGE = {"choices": [], "usage": COUNT}


def test_a_plain_stream():
    first = {**ROLE, "usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}}
    text = stream(
        first, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"), USAGE
    )
    assert read(text) == [
        Usage(9),
        Started(),
        TextDelta("Hel"),
        TextDelta("lo"),
        Usage(9, 3),
        Finished(FinishReason.STOP),
    ]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_under_either_name(key):
    events = read(stream(ROLE, chunk({key: "hm"}), chunk({}, "stop")))
    assert events[1] == ThinkingDelta("hm")


def test_usage_with_its_details():
    usage = {
        **COUNT,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert Usage(9, 3, 8, 2) in read(stream(chunk({}, "stop", usage=usage)))


def test_a_matched_stop_string_is_told_and_a_stop_token_is_not():
    def finished(reason, stop):
        end = chunk({}, reason)
        end["choices"][0]["stop_reason"] = stop
        return read(stream(end))[-1]

    assert finished("stop", "END") == Finished(FinishReason.STOP, "END")
    assert finished("stop", 151645) == Finished(FinishReason.STOP)
    assert finished("stop", None) == Finished(FinishReason.STOP)
    assert finished("length", "END") == Finished(FinishReason.LENGTH)


def test_timings():
    told = {"queue_ms": 1.0, "prefill_ms": 2.5, "decode_ms": 3.0}
    counts = {"prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 3}
    found = read(stream(chunk({}, "stop", timings={**told, **counts})))
    assert found[1] == Measured(found[1].timings)
    assert found[1].timings.prefill_ms == 2.5
    assert read(stream(chunk({}, "stop", timings={"prompt_n": 1}))) == [
        Started(),
        Finished(FinishReason.STOP),
    ]


def call(index=None, id_=None, name=None, arguments=None):
    function = {"name": name, "arguments": arguments}
    delta = {"function": {key: value for key, value in function.items() if value is not None}}
    delta |= {key: value for key, value in {"index": index, "id": id_}.items() if value is not None}
    return chunk({"tool_calls": [delta]})


def test_calls():
    events = read(
        stream(
            call(0, "a", "f", ""),
            call(0, arguments='{"x"'),
            call(0, arguments=":1}"),
            call(1, "b", "g", "{}"),
            chunk({}, "tool_calls"),
        )
    )
    assert events[1:] == [
        ToolCallStart(0, "a", "f"),
        ToolCallDelta(0, '{"x"'),
        ToolCallDelta(0, ":1}"),
        ToolCallStart(1, "b", "g"),
        ToolCallDelta(1, "{}"),
        Finished(FinishReason.TOOL_CALLS),
    ]


def test_what_other_servers_get_wrong_about_calls_is_mended():
    repeated = [call(0, "a", "f", '{"x":'), call(0, "a", "f", "1}")]
    unnumbered = [call(None, "a", "f", '{"x":'), call(None, None, None, "1}")]
    for calls in (repeated, unnumbered):
        events = read(stream(*calls, chunk({}, "stop")))[1:-1]
        assert events == [
            ToolCallStart(0, "a", "f"),
            ToolCallDelta(0, '{"x":'),
            ToolCallDelta(0, "1}"),
        ]
    events = read(stream(call(None, "a", "f"), call(None, "b", "g", {"x": 1}), chunk({}, "stop")))
    assert events[1:-1] == [
        ToolCallStart(0, "a", "f"),
        ToolCallStart(1, "b", "g"),
        ToolCallDelta(1, '{"x":1}'),
    ]
    late = read(stream(call(0, "a", None, "{"), call(0, None, "f", "}"), chunk({}, "stop")))
    assert late[1:-1] == [ToolCallStart(0, "a", "f"), ToolCallDelta(0, "{}")]


def test_a_stream_without_a_finish_has_failed_however_it_ended():
    for done in (True, False):
        events = read(stream(ROLE, chunk({"content": "x"}), USAGE, done=done))
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, errors.UpstreamError)


def test_an_empty_finish_reason_is_none():
    """Some servers send it with every chunk."""
    said = chunk({"content": "a"}, "")
    assert read(stream(said, chunk({}, "stop")))[-1] == Finished(FinishReason.STOP)
    assert isinstance(read(stream(said))[-1], Failed)


def test_a_finished_stream_may_lack_its_done():
    assert read(stream(chunk({}, "stop"), done=False))[-1] == Finished(FinishReason.STOP)


def test_an_error_frame_ends_the_answer_as_the_error_it_says():
    error = errors.DeviceOutOfMemory("no room", extras={"free": 1})
    events = read(stream(ROLE, done=False) + envelope.frame(error) + stream(chunk({}, "stop")))
    failed = events[-1]
    assert len(events) == 2
    assert isinstance(failed.error, errors.DeviceOutOfMemory)
    assert (failed.error.message, failed.error.extras) == ("no room", {"free": 1})


@pytest.mark.parametrize(
    "garbage", [b"data: {oops\n\n", b"data: [1]\n\n", b"data: 5\n\n", b"data: \xff\n\n"]
)
def test_garbage_is_a_failure(garbage):
    events = read(stream(ROLE, done=False) + garbage + stream(chunk({}, "stop")))
    assert [type(event) for event in events] == [Started, Failed]


@pytest.mark.parametrize("reason", ["abort", "error", "whatever"])
def test_a_finish_reason_that_is_no_end_is_a_failure(reason):
    assert isinstance(read(stream(chunk({"content": "x"}, reason)))[-1], Failed)


def test_comments_and_other_choices_are_passed_over():
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]}
    data = KEEP_ALIVE + stream(other, chunk({"content": "x"}, "stop"))
    assert read(data) == [Started(), TextDelta("x"), Finished(FinishReason.STOP)]


def test_a_prewarm_has_no_text():
    data = stream(chunk({"content": "x", "reasoning": "y"}), chunk({}, "stop", usage=COUNT))
    assert read(data, prewarm=True) == [Started(), Usage(9, 0), Finished(FinishReason.LENGTH)]


def test_a_whole_answer():
    message = {
        "role": "assistant",
        "reasoning_content": "hm",
        "content": "x",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
    assert read_answer({"choices": [choice], "usage": COUNT}) == [
        Usage(9, 3),
        Started(),
        ThinkingDelta("hm"),
        TextDelta("x"),
        ToolCallStart(0, "a", "f"),
        ToolCallDelta(0, "{}"),
        Finished(FinishReason.TOOL_CALLS),
    ]
    assert isinstance(read_answer({"choices": []})[-1], Failed)
    assert isinstance(read_answer("nonsense")[-1], Failed)


names = st.sampled_from(
    [
        "choices",
        "index",
        "delta",
        "message",
        "content",
        "reasoning",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "finish_reason",
        "stop_reason",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "timings",
        "error",
    ]
)
scalars = st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from(["stop", "x", "", "{}"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
deltas = st.dictionaries(names, anything, max_size=4)
choices = st.fixed_dictionaries(
    {"delta": deltas}, optional={"index": scalars, "finish_reason": scalars}
)
chunks = st.fixed_dictionaries(
    {"choices": st.lists(choices, max_size=2)}, optional={"usage": deltas}
)


@many
@given(st.lists(chunks | anything, max_size=6), st.booleans())
def test_whatever_comes_exactly_one_event_ends_the_answer_and_it_is_the_last(sent, done):
    events = read(stream(*sent, done=done))
    ends = [isinstance(event, Finished | Failed) for event in events]
    assert ends.count(True) == 1
    assert ends[-1]
