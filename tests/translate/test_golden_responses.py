"""Recorded exchanges of the Responses API: what is sent on, and what is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fakes.responses_client import ResponseFailed, accumulate, events_of
from openai.types import responses as openai_types

from cortex.translate.chat import chat_body
from cortex.translate.chat_reader import ChatReader
from cortex.translate.responses import read_response
from cortex.translate.responses_items import ItemWriter
from cortex.translate.responses_object import response_for, whole_response
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.wire import json as wire_json
from cortex.wire.sse import FrameReader

GOLDEN = Path(__file__).parent.parent / "golden" / "responses"
EXCHANGES = sorted(each.name for each in GOLDEN.iterdir() if each.is_dir())
MODEL = "qwen3-8b"  # what the requested name resolves to
CREATED, COMPLETED = 1_790_000_000, 1_790_000_005


def answered(folder):
    frames, reader = FrameReader(), ChatReader()
    read = frames.feed((folder / "upstream.sse").read_bytes())
    return [event for frame in read for event in reader.feed(frame)] + reader.end()


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_exchange_is_as_recorded(name):
    folder = GOLDEN / name
    asked = read_response(wire_json.load_object((folder / "request.json").read_bytes()))
    sent = json.loads((folder / "upstream_request.json").read_text())
    assert chat_body(asked.conversation, MODEL) == sent
    events = answered(folder)
    response = response_for(asked, "resp_golden", CREATED)

    def writer() -> ItemWriter:
        return ItemWriter("resp_golden", custom=asked.tools.custom, sealed=asked.sealed)

    stream = ResponsesEncoder(response, writer(), lambda: COMPLETED).feed_all(events)
    assert stream.decode() == (folder / "stream.sse").read_text()
    if (folder / "response.json").exists():
        whole = json.loads((folder / "response.json").read_text())
        assert whole_response(events, response, writer(), COMPLETED) == whole == accumulate(stream)
    else:
        with pytest.raises(ResponseFailed):
            accumulate(stream)


EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(openai_types.ResponseStreamEvent)


@pytest.mark.parametrize("name", EXCHANGES)
def test_openais_own_types_take_it(name):
    """As they are: the SDK itself reads answers without a check."""
    folder = GOLDEN / name
    for event in events_of((folder / "stream.sse").read_bytes()):
        assert EVENT.validate_python(event).type == event["type"]
    if (folder / "response.json").exists():
        whole = json.loads((folder / "response.json").read_text())
        found = openai_types.Response.model_validate(whole)
        assert [item.type for item in found.output] == [item["type"] for item in whole["output"]]
