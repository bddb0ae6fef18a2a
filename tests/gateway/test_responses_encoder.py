from __future__ import annotations

import pytest
from fakes.neuron import chunk
from fakes.responses_client import ResponseFailed, accumulate, events_of

from cortex.errors import CortexError, Overloaded, UpstreamError
from cortex.gateway.responses_encoder import ResponseStream
from cortex.translate.responses import read_response
from cortex.translate.responses_items import ItemWriter
from cortex.translate.responses_object import response_for
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.wire.sse import FrameReader

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
EARLY = chunk("m", {"role": "assistant", "content": ""}, usage={"prompt_tokens": 7})
WORDS = chunk("m", {"content": "Hel"}) + chunk("m", {"content": "lo"})
END = chunk("m", {}, finish_reason="stop") + chunk("m", None, usage=USAGE) + b"data: [DONE]\n\n"


@pytest.fixture
def stream() -> ResponseStream:
    asked = read_response({"model": "gpt-x", "input": "Hi"})
    response = response_for(asked, "resp_1", 100)
    return ResponseStream(ResponsesEncoder(response, ItemWriter("resp_1"), lambda: 200))


def encode(stream: ResponseStream, data: bytes) -> bytes:
    return b"".join(stream.feed(frame) for frame in FrameReader().feed(data))


def test_a_chat_stream_becomes_a_response_in_the_name_that_was_asked_for(stream):
    response = accumulate(encode(stream, EARLY + WORDS + END))
    assert stream.complete
    assert (response["id"], response["model"]) == ("resp_1", "gpt-x")
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"]["total_tokens"] == 9
    assert (stream.observed.prompt_tokens, stream.observed.cached_tokens) == (7, 4)
    assert stream.observed.finish_reason == "stop"


def test_the_response_is_created_when_the_stream_is_committed(stream):
    head = stream.commit()
    assert head.count(b"\n\n") == 2
    assert accumulate(head + encode(stream, EARLY + WORDS + END))["status"] == "completed"


def test_only_output_counts_as_produced(stream):
    encode(stream, EARLY)
    assert not stream.produced
    encode(stream, WORDS)
    assert stream.produced


def test_keep_alives_between_events_are_comments(stream):
    out = stream.commit() + stream.keep_alive() + encode(stream, EARLY + WORDS)
    out += stream.keep_alive() + encode(stream, END)
    assert accumulate(out)["status"] == "completed"
    assert stream.keep_alive() == b""
    assert stream.fail(Overloaded("late")) == b""


def test_comments_become_nothing(stream):
    assert encode(stream, b": keep-alive\n\n") == b""


@pytest.mark.parametrize("before", [b"", EARLY + WORDS])
def test_a_failure_is_one_event_without_an_end(stream, before):
    out = encode(stream, before) + stream.fail(Overloaded("full"))
    with pytest.raises(ResponseFailed, match="full") as caught:
        accumulate(out)
    assert caught.value.code == "rate_limit_exceeded"
    assert events_of(out)[0]["type"] == "response.created"


def test_a_stream_without_its_end_is_not_complete(stream):
    out = encode(stream, EARLY + WORDS + chunk("m", {}, finish_reason="stop"))
    assert not stream.complete
    assert b"response.completed" not in out


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_an_event_that_is_no_chunk_is_the_upstreams_error(stream, data):
    with pytest.raises(UpstreamError):
        encode(stream, b"data: " + data + b"\n\n")


def test_an_error_within_the_stream_is_raised(stream):
    with pytest.raises(CortexError, match="gone"):
        encode(stream, EARLY + b'data: {"error": {"message": "gone"}}\n\n')


def test_done_without_a_finish_reason_is_the_upstreams_error(stream):
    with pytest.raises(UpstreamError):
        encode(stream, EARLY + WORDS + b"data: [DONE]\n\n")
