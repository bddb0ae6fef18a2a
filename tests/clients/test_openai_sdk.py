"""OpenAI's own SDK against `cortex up`."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest
from fakes.images import data_url, png_bytes

MODEL = "cortex/demo"
QUESTION = [{"role": "user", "content": "What is cortex?"}]

pytestmark = pytest.mark.slow


@pytest.fixture
def client(up):
    with openai.OpenAI(base_url=f"{up}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_completion_is_whole_and_its_usage_adds_up(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION)
    choice = answer.choices[0]
    assert choice.message.content
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id


def test_embeddings_are_decoded_from_what_the_sdk_asks_for(client):
    """It asks for base64 unless told otherwise."""
    packed = client.embeddings.create(model=MODEL, input=["What is cortex?", "x"])
    plain = client.embeddings.create(model=MODEL, input="x", encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1]
    assert packed.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > plain.usage.prompt_tokens


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_sdks_accumulating_helper_takes_our_stream(client):
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_the_async_client_runs_requests_side_by_side(up):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{up}/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=QUESTION, temperature=0, stream=True, max_tokens=12
                )
                parts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
                return "".join(parts)

            return await asyncio.gather(*(one() for _ in range(6)))

    answers = asyncio.run(ask())
    assert answers[0]
    assert len(set(answers)) == 1


def test_a_completion_continues_its_prompt(client):
    answer = client.completions.create(model=MODEL, prompt="Cortex is", max_tokens=5, echo=True)
    assert answer.choices[0].text.startswith("Cortex is")
    assert answer.usage.completion_tokens == 5


def test_several_choices_and_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=2, max_tokens=4, logprobs=True, top_logprobs=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 4
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)


def test_models_are_listed_and_found_by_an_id_with_a_slash(client):
    assert MODEL in {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_are_typed_and_name_what_is_wrong(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody/nothing", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt=[5] * 70_000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_a_tool_call_comes_back_as_one(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        temperature=0,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "get_weather"


def test_a_streamed_call_is_put_together_and_its_result_answered(client):
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields = {"model": MODEL, "tools": [WEATHER], "temperature": 0}
    with client.chat.completions.stream(messages=question, **fields) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments), dict)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [*question, message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(messages=history, **fields)
    assert answer.choices[0].message.content


def test_an_answer_is_parsed_into_a_class(client):
    class City(pydantic.BaseModel):
        size: Literal["small", "large"]
        river: bool

    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=City, max_completion_tokens=60
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_headers_name_the_request_and_the_model(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=1
    )
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert raw.headers["openai-model"] == MODEL


def test_an_image_is_refused_with_its_place(client):
    image = {"type": "image_url", "image_url": {"url": data_url(png_bytes())}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [image]}])
    assert caught.value.param == "messages[0].content[0]"
