"""The Responses API of OpenAI's own SDK against `cortex up`."""

from __future__ import annotations

import asyncio
from typing import Literal

import openai
import pydantic
import pytest

MODEL = "cortex/demo"
QUESTION = "What is cortex?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}

pytestmark = pytest.mark.slow


@pytest.fixture
def client(up):
    with openai.OpenAI(base_url=f"{up}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_response_is_whole_and_its_usage_adds_up(client):
    response = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    assert response.output_text
    assert (response.status, response.error, response.store) == ("completed", None, False)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert response._request_id


def test_a_stream_says_what_the_whole_response_says(client):
    whole = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text
    assert final.usage == whole.usage or final.usage.total_tokens == whole.usage.total_tokens


def test_the_async_client_streams(up):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{up}/v1", api_key="none") as client:
            stream = await client.responses.create(
                model=MODEL, input=QUESTION, stream=True, max_output_tokens=5
            )
            return [event.type async for event in stream]

    kinds = asyncio.run(ask())
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


class Role(pydantic.BaseModel):
    first: Literal["gateway", "neuron"]


def test_an_answer_is_parsed_as_the_type_that_was_asked_for(client):
    response = client.responses.parse(
        model=MODEL,
        input="Which roles does cortex have?",
        text_format=Role,
        temperature=0,
        max_output_tokens=200,
    )
    assert isinstance(response.output_parsed, Role)


def test_a_tool_call_and_its_output(client):
    items = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = client.responses.create(
        model=MODEL, input=items, tools=[WEATHER], tool_choice="required", temperature=0
    )
    [call] = [item for item in asked.output if item.type == "function_call"]
    assert call.name == "get_weather"
    items += [item.model_dump(exclude_none=True) for item in asked.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    response = client.responses.create(model=MODEL, input=items, tools=[WEATHER], temperature=0)
    assert response.status == "completed"
    assert response.usage.input_tokens > asked.usage.input_tokens


def test_counting_agrees_with_the_usage_of_the_same_request(client):
    fields = {"model": MODEL, "input": QUESTION, "instructions": "Be brief.", "tools": [WEATHER]}
    counted = client.responses.input_tokens.count(**fields)
    response = client.responses.create(**fields, max_output_tokens=1)
    assert counted.input_tokens == response.usage.input_tokens
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )


def test_errors_are_typed_and_name_what_is_wrong(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="nobody/nothing", input=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as earlier:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert earlier.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.responses.create(model=MODEL, input=[{"role": "user", "content": 5}])
    assert wrong.value.param == "input[0].content"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=MODEL, input="word " * 80_000)
    assert long.value.code == "context_length_exceeded"


def test_a_stream_tells_that_the_prompt_is_too_long(client):
    events = list(client.responses.create(model=MODEL, input="word " * 80_000, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]
    assert events[-1].response.error.code == "context_length_exceeded"
