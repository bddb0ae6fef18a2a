from __future__ import annotations

import pytest
from fakes.anthropic_client import StreamError, accumulate
from fakes.neuron import chunk

from cortex.errors import CortexError, Overloaded, UpstreamError
from cortex.gateway.anthropic_encoder import MessageStream
from cortex.translate.anthropic import read_messages
from cortex.wire.sse import FrameReader

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
EARLY = chunk("m", {"role": "assistant", "content": ""}, usage={"prompt_tokens": 7})
WORDS = chunk("m", {"content": "Hel"}) + chunk("m", {"content": "lo"})
END = chunk("m", {}, finish_reason="stop") + chunk("m", None, usage=USAGE) + b"data: [DONE]\n\n"


@pytest.fixture
def stream() -> MessageStream:
    body = {"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    return MessageStream(read_messages(body), "msg_1", "req_1")


def encode(stream: MessageStream, data: bytes) -> bytes:
    return b"".join(stream.feed(frame) for frame in FrameReader().feed(data))


def names(data: bytes) -> list[str | None]:
    return [frame.event for frame in FrameReader().feed(data)]


def test_a_chat_stream_becomes_a_message_in_the_name_that_was_asked_for(stream):
    message = accumulate(encode(stream, EARLY + WORDS + END))
    assert stream.complete
    assert (message["id"], message["model"]) == ("msg_1", "claude-x")
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["output_tokens"] == 2
    assert stream.observed.prompt_tokens == 7
    assert stream.observed.cached_tokens == 4


def test_the_first_events_carry_the_prompts_count(stream):
    out = encode(stream, EARLY + WORDS)
    assert b'"input_tokens":7' in out.split(b"\n\n")[0]


def test_the_first_keep_alive_is_message_start_and_later_ones_pings(stream):
    first, second = stream.keep_alive(), stream.keep_alive()
    assert names(first) == ["message_start"]
    assert names(second) == ["ping"]
    message = accumulate(first + second + encode(stream, EARLY + WORDS + END))
    assert message["usage"]["output_tokens"] == 2
    assert message["content"][0]["text"] == "Hello"


def test_nothing_keeps_a_finished_stream_alive(stream):
    encode(stream, EARLY + WORDS + END)
    assert stream.keep_alive() == b""
    assert stream.fail(Overloaded("late")) == b""


def test_comments_become_nothing(stream):
    assert encode(stream, b": keep-alive\n\n") == b""


@pytest.mark.parametrize("before", [b"", EARLY + WORDS])
def test_a_failure_is_one_error_event_without_an_end(stream, before):
    out = encode(stream, before) + stream.fail(Overloaded("full"))
    with pytest.raises(StreamError, match="full") as caught:
        accumulate(out)
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert caught.value.body["request_id"] == "req_1"
    assert "message_stop" not in names(out)


def test_a_stream_without_its_end_is_not_complete(stream):
    out = encode(stream, EARLY + WORDS + chunk("m", {}, finish_reason="stop"))
    assert not stream.complete
    assert "message_stop" not in names(out)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_an_event_that_is_no_chunk_is_the_upstreams_error(stream, data):
    with pytest.raises(UpstreamError):
        encode(stream, b"data: %b\n\n" % data)


def test_an_error_event_from_upstream_is_raised(stream):
    with pytest.raises(CortexError, match="boom"):
        encode(stream, b'data: {"error": {"message": "boom", "code": "x"}}\n\n')


def test_output_counts_and_a_role_does_not(stream):
    encode(stream, EARLY)
    assert not stream.produced
    encode(stream, WORDS)
    assert stream.produced
