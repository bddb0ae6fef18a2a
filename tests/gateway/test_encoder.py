from __future__ import annotations

import json

import pytest
from fakes.neuron import chunk

from cortex.errors import ContextLengthExceeded, CortexError, Overloaded, UpstreamError
from cortex.gateway.encoder import PassThrough
from cortex.wire.sse import FrameReader

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
FIRST = chunk("m", {"role": "assistant", "content": ""})
HELLO = chunk("m", {"content": "Hello"})
LAST = chunk("m", {}, finish_reason="stop")
DONE = b"data: [DONE]\n\n"


def encode(encoder: PassThrough, data: bytes) -> bytes:
    return b"".join(encoder.feed(frame) for frame in FrameReader().feed(data))


def encoder(requested="m", include_usage=False) -> PassThrough:
    return PassThrough(model="m", requested=requested, include_usage=include_usage)


def objects(data: bytes):
    frames = FrameReader().feed(data)
    return [json.loads(f.data) for f in frames if f.data != b"[DONE]"]


def test_frames_pass_byte_for_byte_when_nothing_has_to_change():
    odd = (
        b'data: {"choices": [ {"delta":{"content":"\\u00e9\xc3\xa9"}, "new" : 1.0e1}], "x":{}}\n\n'
    )
    stream = FIRST + HELLO + odd + LAST + DONE
    assert encode(encoder(), stream) == stream


def test_usage_nobody_asked_for_is_taken_out_and_observed():
    early = chunk("m", {"role": "assistant"}, usage={"prompt_tokens": 7})
    usage = chunk("m", None, usage=USAGE, timings={"decode_ms": 5})
    passing = encoder()
    out = encode(passing, early + HELLO + LAST + usage + DONE)
    assert b"usage" not in out
    assert len(objects(out)) == 3
    observed = passing.observed
    assert (observed.prompt_tokens, observed.completion_tokens) == (7, 3)
    assert observed.milliseconds("decode_ms") == 5
    assert observed.finish_reason == "stop"


def test_usage_that_was_asked_for_comes_once_at_the_end():
    early = chunk("m", {"role": "assistant"}, usage={"prompt_tokens": 7})
    stream = early + HELLO + LAST + chunk("m", None, usage=USAGE) + DONE
    out = encode(encoder(include_usage=True), stream)
    assert [body.get("usage") for body in objects(out)] == [None, None, None, USAGE]
    assert objects(out)[-1]["choices"] == []


def test_an_alias_replaces_the_models_name_in_every_frame():
    stream = FIRST + HELLO + LAST + chunk("m", None, usage=USAGE) + DONE
    bodies = objects(encode(encoder("gpt-4", include_usage=True), stream))
    assert [body["model"] for body in bodies] == ["gpt-4"] * 4


def test_a_neurons_comments_are_swallowed():
    assert encode(encoder(), b": keep-alive\n\n" + HELLO + b":\n\n") == HELLO


def test_an_event_over_several_lines_arrives_as_one():
    out = encode(encoder(), b'data: {"choices":\ndata: []}\n\n')
    assert out == b'data: {"choices":[]}\n\n'
    assert encode(encoder(), b'data: {"choices":\r []}\n\n') == out


def test_lines_that_crash_clients_are_left_out():
    assert encode(encoder(), b"id: 1\nretry: 5\n" + HELLO) == HELLO


def test_only_done_makes_a_stream_complete():
    passing = encoder()
    encode(passing, FIRST + LAST)
    assert not passing.complete
    assert encode(passing, DONE) == DONE
    assert passing.complete


def test_done_without_a_finish_reason_is_no_end():
    passing = encoder()
    encode(passing, FIRST + HELLO + chunk("m", {"content": "a"}, finish_reason=""))
    with pytest.raises(UpstreamError, match="before it was complete"):
        encode(passing, DONE)
    assert not passing.complete


@pytest.mark.parametrize(
    ("delta", "produced"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
        ({}, False),
    ],
)
def test_only_output_of_the_model_counts_as_a_token(delta, produced):
    passing = encoder()
    encode(passing, chunk("m", delta))
    assert passing.produced is produced


def test_text_of_the_completions_route_counts_as_a_token():
    passing = encoder()
    encode(passing, b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')
    assert passing.produced


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"1", b'"x"', b"\xff", b"null", b"[DONE] ", b'{"a":NaN}'],
)
def test_an_event_that_is_no_chunk_is_the_upstreams_error(data):
    with pytest.raises(UpstreamError):
        encode(encoder(), b"data: %b\n\n" % data)


@pytest.mark.parametrize(
    "choices", [None, 1, {}, [], [None], [1], [{}], [{"delta": 1}], [{"finish_reason": 1}]]
)
def test_odd_choices_pass_and_break_nothing(choices):
    data = b"data: %b\n\n" % json.dumps({"choices": choices}).encode()
    assert encode(encoder(), data) == data


@pytest.mark.parametrize("usage", [1, "x", [], {"prompt_tokens": "7"}, {"prompt_tokens": -1}])
def test_odd_usage_counts_as_nothing(usage):
    passing = encoder()
    encode(passing, chunk("m", {"content": "a"}, usage=usage))
    assert passing.observed.prompt_tokens is None


def test_an_error_event_is_raised_as_what_it_says():
    error = {"message": "too long", "code": "context_length_exceeded", "prompt_tokens": 9}
    with pytest.raises(ContextLengthExceeded, match="too long") as caught:
        encode(encoder(), b"data: %b\n\n" % json.dumps({"error": error}).encode())
    assert caught.value.extras == {"prompt_tokens": 9}
    with pytest.raises(CortexError):
        encode(encoder(), b'data: {"error": "plain text"}\n\n')


def test_a_failure_is_an_error_event_with_the_whole_envelope():
    (body,) = objects(encoder().fail(Overloaded("full")))
    assert body["error"] == {
        "message": "full",
        "type": "rate_limit_error",
        "param": None,
        "code": "overloaded",
    }


def test_a_keep_alive_is_a_comment():
    assert encoder().commit() == b""
    assert encoder().keep_alive().startswith(b":")
