"""The OpenAPI documents of both roles: valid, of the routes there are, and kept by real answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.described import Described
from fakes.stack import Payloads, Stack, stack
from openapi_spec_validator import OpenAPIV31SpecValidator

from cortex.gateway.api import reference as gateway_reference
from cortex.neuron import reference as neuron_reference
from cortex.neuron.sources import DEMO_DIRECTORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO_DIRECTORY / "model.safetensors").exists(), reason="no demo model"),
]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
# By path: what is asked beside the document's own example.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 3, "n": 2},
        {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
        {"messages": MESSAGES, "functions": [TOOL["function"]], "max_tokens": 20},
        {"chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 40},
        {"stream_options": {"include_usage": True}, "max_tokens": 4},
    ],
    "/v1/completions": [{"logprobs": 2, "echo": True, "max_tokens": 2}],
    "/v1/embeddings": [{"encoding_format": "base64"}],
    "/v1/responses": [
        {"max_output_tokens": 4, "include": ["reasoning.encrypted_content"]},
        {
            "input": MESSAGES,
            "tools": [{"type": "function", **TOOL["function"]}],
            "tool_choice": "required",
            "max_output_tokens": 60,
        },
    ],
    "/v1/messages": [
        {
            "messages": MESSAGES,
            "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"},
        },
        {"max_tokens": 1200, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
}


async def described(it: Stack, base: str = "") -> Described:
    answer = await it.client.get(f"{base}/openapi.json")
    assert answer.status_code == 200
    return Described(answer.json())


def asked(document: Described, path: str) -> list[dict[str, Any]]:
    example = document.example("POST", path)
    return [example, *({**example, **more} for more in VARIANTS.get(path, []))]


async def streamed(it: Stack, url: str, body: dict[str, Any]) -> list[Any]:
    async with it.client.stream("POST", url, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        payloads = Payloads(answer)
        try:
            return [json.loads(each) async for each in payloads if each != "[DONE]"]
        finally:
            await payloads.aclose()


async def keep_the_word(it: Stack, document: Described, base: str = "") -> None:
    """Every inference route, with the examples and their variants, whole and streamed."""
    for path in (p for method, p in document.operations() if method == "POST"):
        if path.startswith(("/fleet", "/models", "/restart")) or "{" in path or "compact" in path:
            continue
        for body in asked(document, path):
            answer = await it.client.post(f"{base}{path}", json=body)
            assert answer.status_code == 200, (path, answer.text)
            document.check_answer("POST", path, 200, answer.json())
            if path in STREAMED:
                events = await streamed(it, f"{base}{path}", body)
                assert events
                for event in events:
                    document.check_event("POST", path, event)


async def test_the_gateways_answers_are_as_documented(tmp_path: Path):
    async with stack(tmp_path) as it:
        with trio.fail_after(120):
            document = await described(it)
            OpenAPIV31SpecValidator(document.document).validate()
            await keep_the_word(it, document)
            await its_state_is_as_documented(it, document)
            await its_errors_are_as_documented(it, document)


async def its_state_is_as_documented(it: Stack, document: Described) -> None:
    paths = ["/", "/health", "/livez", "/readyz", "/version", "/v1/models", "/v1/models/", "/fleet"]
    for path in paths:
        answer = await it.client.get(path)
        document.check_answer("GET", path, answer.status_code, answer.json())
    listed = await it.client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
    document.check_answer("GET", "/v1/models", 200, listed.json())
    one = await it.client.get("/v1/models/cortex/demo")
    document.check_answer("GET", "/v1/models/{id}", 200, one.json())
    for order in ("pin", "unpin", "unload", "load"):
        path = f"/fleet/models/{order}"
        answer = await it.client.post(path, json=document.example("POST", path))
        assert answer.status_code == 200, answer.text
        document.check_answer("POST", path, 200, answer.json())
    async with it.client.stream("GET", "/fleet/events") as events:
        payloads = Payloads(events)
        document.check_event("GET", "/fleet/events", json.loads(await anext(payloads)))
        await payloads.aclose()


async def its_errors_are_as_documented(it: Stack, document: Described) -> None:
    bad = {"model": "nobody/nothing", "messages": [{"role": "king"}], "max_tokens": 5}
    unknown = {**bad, "messages": MESSAGES, "input": "x", "prompt": "x"}
    for path in (*STREAMED, "/v1/embeddings", "/v1/messages/count_tokens", "/tokenize"):
        for body in (bad, unknown, "no object"):
            answer = await it.client.post(path, json=body)
            assert answer.status_code in (400, 404)
            document.check_answer("POST", path, answer.status_code, answer.json())
    stored = await it.client.get("/v1/responses/resp_1")
    document.check_answer("GET", "/v1/responses/{id}", stored.status_code, stored.json())


async def test_the_neurons_answers_are_as_documented(tmp_path: Path):
    async with stack(tmp_path) as it:
        base = it.neurons[0]
        with trio.fail_after(120):
            document = await described(it, base)
            OpenAPIV31SpecValidator(document.document).validate()
            await keep_the_word(it, document, base)
            for path in ("/discovery", "/health", "/livez", "/readyz", "/version", "/models"):
                answer = await it.client.get(base + path)
                document.check_answer("GET", path, 200, answer.json())
            for path in ("endpoint", "capabilities"):
                answer = await it.client.get(f"{base}/models/cortex/demo/{path}")
                document.check_answer("GET", f"/models/{{id}}/{path}", 200, answer.json())
            for order in ("estimate", "unload", "load"):
                path = f"/models/{order}"
                answer = await it.client.post(base + path, json=document.example("POST", path))
                assert answer.status_code == 200, answer.text
                document.check_answer("POST", path, 200, answer.json())


async def test_every_route_is_documented_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The routes are those that the roles hand to their edges."""
    from cortex.service import edge

    handed: list[set[tuple[str, str]]] = []
    begin = edge.Edge.__init__

    def spy(self: Any, routes: Any, **options: Any) -> None:
        routes = list(routes)
        handed.append({(route.method, route.path) for route in routes})
        begin(self, routes, **options)

    monkeypatch.setattr(edge.Edge, "__init__", spy)
    async with stack(tmp_path):
        pass
    for operations, mark in (
        (gateway_reference.OPERATIONS, "/fleet"),
        (neuron_reference.OPERATIONS, "/discovery"),
    ):
        (routes,) = [each for each in handed if ("GET", mark) in each]
        assert routes == set(operations)
