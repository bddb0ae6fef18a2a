from __future__ import annotations

import pytest

from cortex import errors
from cortex.config.gateway import NeuronNode
from cortex.gateway import foreign
from cortex.wire import errors as envelope

CHAT = "/v1/chat/completions"


def node(**fields) -> NeuronNode:
    return NeuronNode("f", "http://f:1/v1", kind="openai", **fields)


@pytest.mark.parametrize(
    ("endpoint", "base"),
    [
        ("http://f:1", "http://f:1"),
        ("http://f:1/", "http://f:1"),
        ("http://f:1/v1", "http://f:1"),
        ("https://api.example/openai/v1/", "https://api.example/openai"),
        ("https://api.example/v1x", "https://api.example/v1x"),
    ],
)
def test_an_endpoint_may_end_with_the_version_or_not(endpoint, base):
    assert foreign.base_url(endpoint) == base


def test_its_key_and_its_own_headers_go_with_each_request():
    headers = foreign.headers_for(node(token="sk-1", headers={"X-Team": "r", "User-Agent": "me"}))
    assert headers == {
        "authorization": "Bearer sk-1",
        "x-team": "r",
        "user-agent": "me",
        "accept-encoding": "identity",
    }
    assert "authorization" not in foreign.headers_for(node())


# Models


def ids(found) -> dict[str, str | None]:
    return {model.id: model.source for model in found}


LISTING = {"data": [{"id": "org/a"}, {"id": "org/b"}, {"id": "other"}, {"id": "bad id"}, {}, 5]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"org/a": "org/a", "org/b": "org/b", "other": "other"}),
        ({"include": ("org/*",)}, {"org/a": "org/a", "org/b": "org/b"}),
        ({"models": {"x": "org/a", "gone": "org/z"}}, {"x": "org/a"}),
        ({"models": {"y": "bad id"}}, {"y": "bad id"}),
        (
            {"models": {"x": "org/a"}, "include": ("o*",)},
            {"x": "org/a", "org/b": "org/b", "other": "other"},
        ),
        ({"models": {"other": "org/a"}, "include": ("o*",)}, {"other": "org/a", "org/b": "org/b"}),
    ],
)
def test_what_is_served_is_what_is_listed_mapped_and_let_through(settings, expected):
    found = foreign.models_of(node(**settings), LISTING)
    assert ids(found) == expected
    assert {model.status for model in found} == {"loaded"}


@pytest.mark.parametrize(
    ("item", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 8192}, 8192),
        ({"context_window": 1000}, 1000),
        ({"meta": {"n_ctx": 512}}, 512),
        ({"max_model_len": "many"}, None),
        ({"max_model_len": 0}, None),
        ({"meta": 3}, None),
    ],
)
def test_the_context_is_known_where_the_server_tells_and_else_unknown(item, context):
    (model,) = foreign.models_of(node(), {"data": [{"id": "m", **item}]})
    assert (model.limit.context if model.limit else None) == context


@pytest.mark.parametrize("listing", [None, {}, {"data": None}, "models", 5])
def test_what_is_no_list_is_no_empty_list(listing):
    with pytest.raises(errors.UpstreamError):
        foreign.models_of(node(), listing)


def test_a_bound_on_requests_is_told_as_a_neuron_would():
    models = foreign.models_of(node(), LISTING)
    loads = foreign.health_of(node(max_in_flight=3), models).models
    assert {load.id: load.max_in_flight for load in loads} == dict.fromkeys(ids(models), 3)
    assert foreign.health_of(node(), models).models == ()


# Requests


def test_only_openais_fields_are_sent_and_the_model_is_named_as_there():
    body = {
        "model": "x",
        "messages": [],
        "temperature": 1,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 5,
        "chat_template_kwargs": {},
        "thinking": {},
        "on_overflow": "error",
        "continue_final_message": True,
        "new": 1,
    }
    assert foreign.body_for(node(), CHAT, body, "org/a") == {
        "model": "org/a",
        "messages": [],
        "temperature": 1,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_server_is_sent_what_it_is_said_to_know_and_spared_what_it_does_not():
    body = {"model": "x", "messages": [], "top_k": 5, "min_p": 0.1, "user": "u", "on_overflow": "e"}
    sent = foreign.body_for(node(pass_fields=("top_k",), drop_fields=("user",)), CHAT, body, "m")
    assert sent == {"model": "m", "messages": [], "top_k": 5}
    sent = foreign.body_for(node(pass_fields=("*",)), CHAT, body, "m")
    assert sent == {"model": "m", "messages": [], "top_k": 5, "min_p": 0.1, "user": "u"}


@pytest.mark.parametrize(
    ("dropped", "sent", "arrives"),
    [
        (("max_completion_tokens",), {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (("max_tokens",), {"max_tokens": 5}, {"max_completion_tokens": 5}),
        (
            ("max_tokens",),
            {"max_tokens": 5, "max_completion_tokens": 6},
            {"max_completion_tokens": 6},
        ),
        (("max_tokens", "max_completion_tokens"), {"max_tokens": 5}, {}),
    ],
)
def test_the_bound_on_an_answer_is_sent_under_the_name_that_is_known(dropped, sent, arrives):
    body = {"model": "x", "messages": [], **sent}
    found = foreign.body_for(node(drop_fields=dropped), CHAT, body, "m")
    assert found == {"model": "m", "messages": [], **arrives}


def test_each_route_has_fields_of_its_own():
    body = {"model": "x", "prompt": "p", "echo": True, "messages": [], "reasoning_effort": "low"}
    sent = foreign.body_for(node(), "/v1/completions", body, "m")
    assert sent == {"model": "m", "prompt": "p", "echo": True}


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"reasoning_effort": "low", "thinking": {"budget_tokens": 99_999}}, "low"),
        ({"reasoning_effort": "max"}, "xhigh"),
        ({"thinking": {"budget_tokens": 1024}}, "low"),
        ({"thinking": {"budget_tokens": 10_000}}, "medium"),
        ({"thinking": {"budget_tokens": 32_000}}, "high"),
        ({"thinking": {"budget_tokens": None}}, None),
        ({}, None),
    ],
)
def test_a_budget_of_thinking_becomes_an_effort(fields, effort):
    sent = foreign.body_for(node(), CHAT, {"model": "x", "messages": [], **fields}, "m")
    assert sent.get("reasoning_effort") == effort
    assert "thinking" not in sent


def test_reasoning_in_the_history_is_left_out_unless_the_server_knows_it():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "reasoning": "hm"},
    ]
    body = {"model": "x", "messages": messages}
    sent = foreign.body_for(node(), CHAT, body, "m")["messages"]
    assert sent == [messages[0], {"role": "assistant", "content": "b"}]
    knows = node(pass_fields=("reasoning_content",))
    assert foreign.body_for(knows, CHAT, body, "m")["messages"] == messages


def test_what_would_be_another_request_without_its_field_is_refused():
    body = {"model": "x", "messages": [], "structured": {"regex": "a+"}}
    with pytest.raises(errors.BadRequest) as caught:
        foreign.body_for(node(), CHAT, body, "m")
    assert caught.value.param == "structured"
    knows = node(pass_fields=("structured",))
    assert foreign.body_for(knows, CHAT, body, "m")["structured"] == {"regex": "a+"}


# Errors


def told(status: int, message: str, **more) -> errors.CortexError:
    parsed = envelope.parse(status, {"error": {"message": message, **more}}, "7")
    return foreign.refusal("f", status, parsed)


@pytest.mark.parametrize(
    ("status", "message", "more", "expected"),
    [
        (400, "bad temperature", {}, errors.BadRequest),
        (413, "too large", {}, errors.PayloadTooLarge),
        (429, "slow down", {"code": "rate_limit_exceeded"}, errors.RateLimited),
        (404, "The model `x` does not exist", {}, errors.ModelNotFound),
        (404, "Not Found", {}, errors.NotFound),
        (405, "Method Not Allowed", {}, errors.NotFound),
        (501, "not implemented", {}, errors.NotFound),
        (500, "CUDA error", {}, errors.UpstreamError),
        (502, "bad gateway", {}, errors.UpstreamError),
        (520, "unknown", {}, errors.UpstreamError),
        (503, "loading", {}, errors.Unavailable),
        (529, "busy", {}, errors.Overloaded),
    ],
)
def test_an_error_of_theirs_keeps_its_meaning_and_names_its_node(status, message, more, expected):
    error = told(status, message, **more)
    assert type(error) is expected
    assert message in error.message
    assert error.message.startswith("f: ")


def test_a_rate_limit_says_when_to_come_back():
    assert told(429, "slow down").retry_after == 7


def test_how_far_a_load_is_passes_from_another_gateway_and_nothing_else_does():
    error = told(503, "loading", code="service_unavailable", loading={"stage": "weights"}, x=1)
    assert type(error) is errors.ModelLoading
    assert error.extras == {"loading": {"stage": "weights"}}


@pytest.mark.parametrize(
    ("status", "message", "more", "prompt", "context"),
    [
        (
            400,
            (
                "This model's maximum context length is 4096 tokens. However, you requested 5000 "
                "tokens (4500 in the messages, 500 in the completion)."
            ),
            {},
            4500,
            4096,
        ),
        (
            400,
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum "
                "context length is 4096 tokens and your request has 4000 input tokens"
            ),
            {},
            4000,
            4096,
        ),
        (
            400,
            "the request exceeds the available context size, try increasing it",
            {"type": "exceed_context_size_error", "n_prompt_tokens": 900, "n_ctx": 512},
            900,
            512,
        ),
        (
            400,
            (
                "This model's maximum context length is 8192 tokens. However, your messages "
                "resulted in 9001 tokens."
            ),
            {"code": "context_length_exceeded"},
            9001,
            8192,
        ),
        (400, "too long", {"code": "context_length_exceeded"}, None, None),
    ],
)
def test_a_prompt_that_is_too_long_is_told_with_its_numbers(status, message, more, prompt, context):
    error = told(status, message, **more)
    assert type(error) is errors.ContextLengthExceeded
    assert error.extras["prompt_tokens"] == prompt
    assert error.extras["context"] == context
