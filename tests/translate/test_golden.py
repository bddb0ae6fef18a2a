"""Recorded exchanges: what a client sends, what the neuron is sent, what both answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.anthropic_client import StreamError, accumulate

from cortex.translate.anthropic import read_messages
from cortex.translate.anthropic_blocks import BlockWriter, message
from cortex.translate.anthropic_stream import AnthropicEncoder
from cortex.translate.chat import chat_body
from cortex.translate.chat_reader import ChatReader
from cortex.wire import json as wire_json
from cortex.wire.sse import FrameReader

GOLDEN = Path(__file__).parent.parent / "golden" / "anthropic"
EXCHANGES = sorted(each.name for each in GOLDEN.iterdir() if each.is_dir())
MODEL = "qwen3-8b"  # what the requested name resolves to


def writer(conversation):
    return BlockWriter(
        "msg_golden", shown=conversation.reasoning.shown, signature_key=b"golden" * 6
    )


def events_of(folder, conversation):
    frames, reader = FrameReader(), ChatReader(prewarm=conversation.prewarm)
    read = frames.feed((folder / "upstream.sse").read_bytes())
    return [event for frame in read for event in reader.feed(frame)] + reader.end()


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_exchange_is_as_recorded(name):
    folder = GOLDEN / name
    conversation = read_messages(wire_json.load_object((folder / "request.json").read_bytes()))
    sent = json.loads((folder / "upstream_request.json").read_text())
    assert chat_body(conversation, MODEL) == sent
    events = events_of(folder, conversation)
    encoder = AnthropicEncoder(
        conversation.model, writer(conversation), "req_golden", input_tokens=1000
    )
    stream = encoder.feed_all(events)
    assert stream.decode() == (folder / "stream.sse").read_text()
    if (folder / "message.json").exists():
        whole = json.loads((folder / "message.json").read_text())
        found = message(events, writer(conversation), model=conversation.model)
        assert found == whole == accumulate(stream)
    else:
        with pytest.raises(StreamError):
            accumulate(stream)
