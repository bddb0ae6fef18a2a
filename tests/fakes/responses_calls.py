"""Requests of the Responses API over a fake neuron, and what it is to answer."""

from __future__ import annotations

from typing import Any

from fakes.gateway import CHAT, RunningGateway
from fakes.images import png
from fakes.neuron import FakeNeuron, Reply, chunk, json_reply
from fakes.responses_client import check_response

RESPONSES = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files."}
PNG = png()
IMAGE = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def ask(given: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": given, **fields}


async def post(served: RunningGateway, given: Any = "hi", **fields: Any) -> Any:
    """The whole response to *given*, held to the schema."""
    answer = await served.client.post(RESPONSES, json=ask(given, **fields))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    check_response(body)
    return body


async def stream(served: RunningGateway, given: Any = "hi", **fields: Any) -> bytes:
    return await served.streamed(ask(given, stream=True, **fields), RESPONSES)


async def refused(
    served: RunningGateway, status: int, method: str = "POST", path: str = RESPONSES, **sent: Any
) -> dict[str, Any]:
    """The error of a request that must be refused; a good one is answered after it."""
    answer = await served.client.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    await post(served)
    return error


def says(neuron: FakeNeuron, *deltas: dict[str, Any], finish: str = "stop") -> None:
    """The neuron answers with *deltas*, in a stream or whole."""
    frames = [chunk("m", delta) for delta in deltas]
    frames += [chunk("m", {}, finish_reason=finish), chunk("m", None, usage=USAGE)]
    frames.append(b"data: [DONE]\n\n")
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas:
        message["content"] += delta.get("content", "")
        message.setdefault("tool_calls", []).extend(delta.get("tool_calls", ()))
    choice = {"index": 0, "message": message, "finish_reason": finish}
    whole = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}

    def answer(asked: Any) -> Reply:
        if asked.json.get("stream"):
            return Reply(frames=frames, content_type="text/event-stream")
        return json_reply(whole)

    neuron.scripts[CHAT] = answer


def call(index: int, id_: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    told = {"index": index, "id": id_, "type": "function", "function": function}
    return {"tool_calls": [told]}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def text_of(response: Any) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def sent(neuron: FakeNeuron) -> Any:
    return neuron.last(CHAT).json
