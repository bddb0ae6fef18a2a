"""A server of another make: strict OpenAI over real sockets, with the quirks that servers have.

It refuses fields it does not know, checks its key, knows nothing of neurons, and is told by its
switches what to leave out.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from fakes.neuron import Asked, FakeNeuron, Reply, chunk, json_reply

from cortex.config.gateway import NeuronNode

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

COMMON = {
    *("model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
    *("presence_penalty", "seed", "stop", "stream", "stream_options", "temperature", "top_p"),
    "user",
}
KNOWN = {
    CHAT: COMMON
    | {
        *("messages", "max_completion_tokens", "metadata", "parallel_tool_calls", "store"),
        *("prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier"),
        *("tool_choice", "tools", "top_logprobs", "functions", "function_call", "verbosity"),
    },
    COMPLETIONS: COMMON | {"prompt", "best_of", "echo", "suffix"},
    EMBEDDINGS: {"model", "input", "dimensions", "encoding_format", "user"},
}
MESSAGE = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio"}


def refused(status: int, message: str, *, retry_after: int | None = None, **more: Any) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    headers = {} if retry_after is None else {"retry_after": str(retry_after)}
    return json_reply({"error": {**error, **more}}, status, **headers)


@attrs.define(eq=False)
class FakeOpenAi(FakeNeuron):
    """``listing`` is what it serves; ``extra`` fields it knows beyond OpenAI's."""

    token: str | None = "sk-theirs"
    listing: list[dict[str, Any]] = attrs.field(factory=lambda: [{"id": "org/theirs"}])
    extra: set[str] = attrs.field(factory=set)
    settings: dict[str, Any] = attrs.field(factory=dict)  # of its entry in the configuration
    thoughts: str = ""
    tells_usage: bool = True
    says_done: bool = True
    counts_tokens: bool = False
    secure: str | None = None  # where it is reached instead, through TLS

    def configured(self) -> NeuronNode:
        given = {"token": self.token, "kind": "openai", **self.settings}
        return NeuronNode(self.name, f"{self.secure or self.url}/v1", **given)

    async def _reply(self, asked: Asked) -> Reply:
        if self.token is not None and asked.headers.get("authorization") != f"Bearer {self.token}":
            return refused(401, "Incorrect API key provided", code="invalid_api_key")
        script = self.scripts.get(asked.path)
        scripted = script(asked) if script is not None else None
        if scripted is not None:
            return scripted
        if (asked.method, asked.path) == ("GET", "/v1/models"):
            return json_reply({"object": "list", "data": self.listing})
        if asked.method == "POST" and asked.path in KNOWN:
            return self._checked(asked) or self._infer(asked)
        if (asked.method, asked.path) == ("POST", "/tokenize") and self.counts_tokens:
            count = len(json.dumps(asked.json["messages"]).split())
            return json_reply({"count": count, "max_model_len": 4096, "tokens": [1] * count})
        return json_reply({"detail": "Not Found"}, 404)

    def _checked(self, asked: Asked) -> Reply | None:
        """Why it does not take the request."""
        ours = [name for name in asked.headers if name.startswith("x-cortex-")]
        if ours:
            return refused(400, f"unknown header {ours[0]}")
        body = asked.json
        for name in body:
            if name not in KNOWN[asked.path] | self.extra:
                return refused(400, f"Unrecognized request argument supplied: {name}")
        for message in body.get("messages", ()):
            unknown = set(message) - MESSAGE - self.extra
            if unknown:
                return refused(400, f"Unknown parameter: 'messages[0].{min(unknown)}'.")
        if body["model"] not in [item["id"] for item in self.listing]:
            message = f"The model `{body['model']}` does not exist"
            return refused(404, message, code="model_not_found")
        return None

    def _infer(self, asked: Asked) -> Reply:
        body = asked.json
        if asked.path == EMBEDDINGS:
            data = [{"object": "embedding", "index": 0, "embedding": [1.0, 0.5]}]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return json_reply(
                {"object": "list", "model": body["model"], "data": data, "usage": usage}
            )
        usage = {"prompt_tokens": 9, "completion_tokens": len(self.words), "total_tokens": 12}
        if body.get("stream"):
            asks = (body.get("stream_options") or {}).get("include_usage")
            frames = self._frames(body["model"], usage if asks and self.tells_usage else None)
            return Reply(frames=frames, content_type="text/event-stream")
        text = "".join(self.words)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.thoughts:
            message["reasoning"] = self.thoughts
        choice = {"index": 0, "finish_reason": "stop", "message": message, "text": text}
        answer = {"id": "cmpl-theirs", "object": "chat.completion", "created": 1}
        answer |= {"model": body["model"], "choices": [choice]}
        return json_reply(answer | ({"usage": usage} if self.tells_usage else {}))

    def _frames(self, model: str, usage: dict[str, Any] | None) -> list[bytes]:
        frames = [chunk(model, {"role": "assistant", "content": ""})]
        if self.thoughts:
            frames.append(chunk(model, {"reasoning": self.thoughts}))
        frames += [chunk(model, {"content": word}) for word in self.words]
        frames.append(chunk(model, {}, finish_reason="stop"))
        if usage is not None:
            frames.append(chunk(model, None, usage=usage))
        return [*frames, b"data: [DONE]\n\n"] if self.says_done else frames
