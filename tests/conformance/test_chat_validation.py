"""CV: chat completions, what is refused and how."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.checks import CHAT, TOOL, Server, told, user
from fakes.neuron import error_reply


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [message]}


MISSING = object()
# id -> the fields of a request, and the param and the code of its refusal (None: not checked)
REFUSED: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "CV01": ({"model": MISSING}, "model", "missing_required_parameter"),
    "CV02": ({"messages": MISSING}, "messages", "missing_required_parameter"),
    "CV03": ({"messages": []}, "messages", "empty_array"),
    "CV04": ({"messages": "hi"}, "messages", "invalid_type"),
    "CV05": (said(content="hi"), "messages[0].role", "missing_required_parameter"),
    "CV06": (said(role="wizard", content="hi"), "messages[0].role", None),
    "CV07": (said(role="user", content=123), "messages[0].content", "invalid_type"),
    "CV08": (
        said(role="user", content=[{"type": "video", "video": "x"}]),
        "messages[0].content[0].type",
        None,
    ),
    "CV09": (said(role="tool", content="x"), "messages[0].tool_call_id", None),
    "CV11-above": ({"temperature": 2.1}, "temperature", None),
    "CV11-below": ({"temperature": -1}, "temperature", None),
    "CV11-word": ({"temperature": "hot"}, "temperature", "invalid_type"),
    "CV12-zero": ({"top_p": 0}, "top_p", None),
    "CV12-above": ({"top_p": 1.01}, "top_p", None),
    "CV13": ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    "CV14": ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    "CV15": ({"max_tokens": 1e30}, "max_tokens", "invalid_type"),
    "CV16-zero": ({"n": 0}, "n", "integer_below_min_value"),
    "CV16-many": ({"n": 10000}, "n", "integer_above_max_value"),
    "CV17-empty": ({"stop": ""}, "stop", None),
    "CV17-many": ({"stop": ["x"] * 1000}, "stop", None),
    "CV17-long": ({"stop": "x" * 900_000}, "stop", None),
    "CV18": ({"top_logprobs": 5}, "top_logprobs", None),
    "CV19": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    "CV20-word": ({"logit_bias": {"abc": 1}}, "logit_bias", None),
    "CV20-value": ({"logit_bias": {"1": 101}}, "logit_bias", None),
    "CV21": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    "CV22": ({"response_format": {"type": "yaml"}}, "response_format.type", None),
    "CV24": ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
    "CV25-space": ({"tools": [named("get weather")]}, "tools[0].function.name", None),
    "CV25-long": ({"tools": [named("x" * 129)]}, "tools[0].function.name", None),
    "CV26": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "absent"}}},
        "tool_choice",
        None,
    ),
    "CV27": ({"tool_choice": "required"}, "tool_choice", None),
    "CV28": ({"tools": [TOOL, TOOL]}, "tools", None),
    "CV29": ({"stream": "yes"}, "stream", "invalid_type"),
    "CV31-empty": ({"model": ""}, "model", "empty_string"),
    "CV31-null": ({"model": None}, "model", "invalid_type"),
    "CV31-number": ({"model": 42}, "model", "invalid_type"),
    "CV39": ({"frequency_penalty": 3}, "frequency_penalty", None),
    "CV40": ({"functions": [TOOL["function"]], "tools": [TOOL]}, "functions", None),
}


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_refused_is_named(
    scripted: Server, fields: dict[str, Any], param: str, code: str | None, stream: bool
) -> None:
    body = {key: value for key, value in scripted.body(**fields).items() if value is not MISSING}
    error = scripted.refused(CHAT, {"stream": stream, **body})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert [asked.path for asked in scripted.gateway.neuron.requests].count(CHAT) == 1  # the good


def test_cv13_the_text_is_openais(scripted: Server) -> None:
    error = scripted.refused(CHAT, scripted.body(max_tokens=-1))
    assert "integer below minimum value. Expected a value >= 0, but got -1" in error["message"]


def test_cv10_a_result_that_answers_no_call_is_taken(real: Server) -> None:
    result = {"role": "tool", "tool_call_id": "call_nobody", "content": "sunny"}
    assert real.chat(messages=[user(), result], max_tokens=1)


ENGINE: dict[str, tuple[dict[str, Any], str]] = {
    "CV20-vocabulary": ({"logit_bias": {"999999999": 1}}, "logit_bias"),
    "CV23": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "strin"}},
            }
        },
        "response_format",
    ),
}


@pytest.mark.parametrize(("fields", "param"), ENGINE.values(), ids=ENGINE.keys())
def test_what_only_the_neuron_can_judge_is_400_too(
    real: Server, fields: dict[str, Any], param: str
) -> None:
    assert real.refused(CHAT, real.body(**fields))["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_cv30_an_unknown_model_is_404(scripted: Server, stream: bool) -> None:
    error = scripted.refused(CHAT, scripted.body(model="nobody", stream=stream), 404)
    assert error["code"] == "model_not_found"


def test_cv35_another_verb_is_405(scripted: Server) -> None:
    scripted.refused(CHAT, None, 405, method="GET")
    assert scripted.client.get(CHAT).headers["allow"] == "POST"


def test_cv36_a_route_that_is_none_is_404(scripted: Server) -> None:
    assert scripted.refused("/v1/chat/completion", scripted.body(), 404)["code"] == "not_found"


def test_cv37_the_content_type_does_not_matter(scripted: Server) -> None:
    body = scripted.client.build_request("POST", CHAT, json=scripted.body()).read()
    response = scripted.client.post(CHAT, content=body, headers={"content-type": "text/plain"})
    assert response.status_code == 200


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"m"'], ids="CV38-{}".format)
def test_cv38_a_body_that_is_no_object_is_400(scripted: Server, body: bytes) -> None:
    scripted.refused(CHAT, body)


def test_cv42_a_model_that_loads_is_503_with_a_hint(scripted: Server) -> None:
    scripted.says(error_reply(503, "service_unavailable", "loading", retry_after=7))
    response = scripted.post(CHAT, scripted.body())
    scripted.gateway.neuron.scripts.clear()
    error = told(response, 503, anthropic=False)
    assert error["code"] == "service_unavailable"
    assert response.headers["retry-after"] == "7"
