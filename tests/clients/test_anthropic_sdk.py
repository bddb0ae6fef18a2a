"""Anthropic's own SDK against `cortex up`."""

from __future__ import annotations

import asyncio

import anthropic
import pytest
from fakes.images import png

MODEL = "cortex/demo"
QUESTION = [{"role": "user", "content": "What is cortex?"}]

pytestmark = pytest.mark.slow


@pytest.fixture
def client(up):
    with anthropic.Anthropic(base_url=up, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_is_whole(client):
    message = client.messages.create(model=MODEL, max_tokens=100, messages=QUESTION)
    assert message.content[0].text
    assert (message.role, message.stop_reason) == ("assistant", "end_turn")
    assert message.usage.input_tokens > 0
    assert message._request_id


def test_a_stream_accumulates_to_the_whole_message(client):
    whole = client.messages.create(model=MODEL, max_tokens=100, messages=QUESTION)
    with client.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.content[0].text == text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_async_client_streams(up):
    async def ask() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=up, api_key="none") as client,
            client.messages.stream(model=MODEL, max_tokens=20, messages=QUESTION) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(ask())


def test_counting_agrees_with_the_usage_of_the_same_request(client):
    system = "You are a helpful assistant."
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION, system=system)
    message = client.messages.create(model=MODEL, max_tokens=1, messages=QUESTION, system=system)
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert message.stop_reason == "max_tokens"


def test_a_stop_sequence_is_told(client):
    message = client.messages.create(
        model=MODEL, max_tokens=100, messages=QUESTION, stop_sequences=["e"]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "e")
    assert "e" not in "".join(block.text for block in message.content)


def test_errors_are_typed(client):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nobody/nothing", max_tokens=1, messages=QUESTION)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        client.messages.create(model=MODEL, max_tokens=1, messages=[])
    long = [{"role": "user", "content": "word " * 80_000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+"):
        client.messages.create(model=MODEL, max_tokens=1, messages=long)


def test_the_old_headers_and_the_prefixed_path_work_too(up):
    with anthropic.Anthropic(base_url=f"{up}/anthropic", api_key="none") as client:
        message = client.messages.create(
            model=MODEL,
            max_tokens=5,
            messages=QUESTION,
            extra_headers={"anthropic-version": "2023-06-01", "x-api-key": "none"},
        )
    assert message.content


WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


def test_a_streamed_call_is_put_together_and_its_result_answered(client):
    question = {"role": "user", "content": "What is the weather in Paris?"}
    fields = {"model": MODEL, "max_tokens": 200, "tools": [WEATHER]}
    with client.messages.stream(
        messages=[question], tool_choice={"type": "any"}, **fields
    ) as stream:
        message = stream.get_final_message()
    (call,) = message.content
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert isinstance(call.input, dict)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    said = [block.model_dump(exclude_none=True) for block in message.content]
    history = [
        question,
        {"role": "assistant", "content": said},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(messages=history, **fields).content[0].text


def test_thinking_is_signed_and_may_be_sent_back(client):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    fields = {"model": MODEL, "max_tokens": 2000, "thinking": thinking}
    with client.messages.stream(messages=QUESTION, **fields) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature
    said = [block.model_dump(exclude_none=True) for block in message.content]
    history = [*QUESTION, {"role": "assistant", "content": said}, *QUESTION]
    assert client.messages.create(messages=history, **fields).content


def test_models_are_paged_and_found(client):
    pages = client.models.list(limit=1)
    ids = [model.id for model in pages]
    assert MODEL in ids
    assert f"claude-cortex-{MODEL}" in ids
    assert client.models.retrieve(MODEL).display_name == MODEL
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody/nothing")


def test_an_image_is_refused_with_its_place(client):
    source = {"type": "base64", "media_type": "image/png", "data": png()}
    content = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0: .* text only"):
        client.messages.create(
            model=MODEL, max_tokens=5, messages=[{"role": "user", "content": content}]
        )
