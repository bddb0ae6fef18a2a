"""What every case asks of answers, whatever it is about."""

from __future__ import annotations

from typing import Any

import attrs
import httpx
from fakes.anthropic_client import accumulate
from fakes.neuron import Reply, chunk, json_reply
from fakes.served_gateway import ServedGateway

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ANTHROPIC_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": TOOL["function"]["parameters"],
}
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
}


def user(content: Any = "What is cortex?") -> dict[str, Any]:
    return {"role": "user", "content": content}


@attrs.define(eq=False)
class Server:
    """A served gateway and the model that it has."""

    gateway: ServedGateway
    model: str

    @property
    def client(self) -> httpx.Client:
        return self.gateway.client

    # Requests

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [user()], "temperature": 0, **fields}

    def message_body(self, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [user()], "max_tokens": 32, **fields}

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.gateway.post(path, body, **options)

    def ok(self, path: str, body: Any, **options: Any) -> Any:
        response = self.post(path, body, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, **fields: Any) -> Any:
        return self.ok(CHAT, self.body(**fields))

    def complete(self, prompt: Any, **fields: Any) -> Any:
        return self.ok(COMPLETIONS, {"model": self.model, "prompt": prompt, **fields})

    def embed(self, given: Any, **fields: Any) -> Any:
        return self.ok(EMBEDDINGS, {"model": self.model, "input": given, **fields})

    def message(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        return self.ok(MESSAGES, self.message_body(**fields), headers=headers or {})

    def count(self, **fields: Any) -> int:
        body = {"model": self.model, "messages": [user()], **fields}
        told = self.ok(COUNT, body)
        assert list(told) == ["input_tokens"]
        return int(told["input_tokens"])

    def chunks(self, **fields: Any) -> list[Any]:
        """The chunks of a streamed chat completion, `[DONE]` left out."""
        found = self.gateway.stream(CHAT, self.body(**fields))
        assert found[-1] == "[DONE]"
        return found[:-1]

    def accumulated(self, **fields: Any) -> Any:
        """The message of a stream, through a reader that holds it to the protocol."""
        answer = self.gateway.raw_stream(MESSAGES, self.message_body(**fields))
        return accumulate(answer.content)

    # Refusals

    def refused(
        self, path: str, body: Any, status: int = 400, method: str = "POST", **options: Any
    ) -> Any:
        """The error of a request that must be refused; a good one is answered after it."""
        if method == "POST":
            response = self.post(path, body, **options)
        else:
            response = self.client.request(method, path, **options)
        anthropic = "/v1/messages" in path or "anthropic-version" in options.get("headers", {})
        error = told(response, status, anthropic=anthropic)
        after = self.post(CHAT, self.body(max_tokens=1))
        assert after.status_code == 200, after.text
        return error

    # What the fake neuron says

    def says(self, reply: Reply, path: str = CHAT) -> None:
        self.gateway.neuron.scripts[path] = lambda asked: reply

    def answers(self, message: dict[str, Any], finish: str = "stop", **choice: Any) -> None:
        """The fake neuron's whole answer has *message*."""
        told = {"role": "assistant", "content": None, "refusal": None, **message}
        choices = [{"index": 0, "message": told, "finish_reason": finish, "logprobs": None}]
        choices[0] |= choice
        self.says(
            json_reply(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": self.model,
                    "choices": choices,
                    "usage": USAGE,
                }
            )
        )

    def streams(self, *deltas: dict[str, Any], finish: str | None = "stop", **last: Any) -> None:
        """The fake neuron's stream has *deltas*; without *finish* it breaks off after them."""
        frames = [chunk(self.model, {"role": "assistant", "content": ""}, usage=None)]
        frames += [chunk(self.model, delta, usage=None) for delta in deltas]
        if finish is not None:
            frames.append(chunk(self.model, {}, finish_reason=finish, usage=None, **last))
            frames.append(chunk(self.model, None, usage=USAGE))
            frames.append(b"data: [DONE]\n\n")
        self.says(Reply(frames=frames, content_type="text/event-stream", abort=finish is None))

    def sent(self, path: str = CHAT) -> Any:
        """The newest body that the fake neuron got."""
        return self.gateway.neuron.last(path).json


def told(response: httpx.Response, status: int, *, anthropic: bool) -> Any:
    """The error in *response*, which must be whole in its dialect."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/json"
    request_id = response.headers["request-id"]
    assert response.headers["x-request-id"] == request_id
    assert "Traceback" not in response.text
    body = response.json()
    error = body["error"]
    if anthropic:
        assert body["type"] == "error"
        assert body["request_id"] == request_id
        assert set(body) == {"type", "error", "request_id"}
        assert {"type", "message"} <= set(error) <= {"type", "message", "details"}
    else:
        assert {"message", "type", "param", "code"} <= set(error)
        assert isinstance(error["code"], str)
        assert error["param"] is None or isinstance(error["param"], str)
    assert error["message"]
    assert len(error["message"].encode()) <= 1000
    assert error["message"].isprintable()
    return error


def call(name: str, arguments: str, index: int = 0, id_: str | None = None) -> dict[str, Any]:
    """A tool call in a whole answer."""
    function = {"name": name, "arguments": arguments}
    return {"id": id_ or f"call_{index}", "type": "function", "function": function}


def call_deltas(
    name: str, arguments: str, index: int = 0, id_: str | None = None, size: int = 4
) -> list[dict[str, Any]]:
    """The same in a stream: the head, then the arguments in pieces."""
    head = {"index": index, "id": id_ or f"call_{index}", "type": "function"}
    head["function"] = {"name": name, "arguments": ""}
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    tails = [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    return [{"tool_calls": [each]} for each in [head, *tails]]
