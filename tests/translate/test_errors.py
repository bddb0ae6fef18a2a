from __future__ import annotations

import pytest

from cortex import errors
from cortex.errors import CortexError
from cortex.translate.errors import anthropic, anthropic_frame, openai
from cortex.wire import errors as wire_errors


def every_class(cls=CortexError):
    return [cls] + [each for sub in cls.__subclasses__() for each in every_class(sub)]


ALL = [cls for cls in every_class() if cls.__module__ == "cortex.errors"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.BadRequest("x"), 400, "invalid_request_error"),
        (errors.TemplateError("x"), 400, "invalid_request_error"),
        (errors.Unauthorized("x"), 401, "authentication_error"),
        (errors.Forbidden("x"), 403, "permission_error"),
        (errors.NotFound("x"), 404, "not_found_error"),
        (errors.ModelNotFound("x"), 404, "not_found_error"),
        (errors.MethodNotAllowed("x"), 405, "invalid_request_error"),
        (errors.Conflict("x"), 409, "conflict_error"),
        (errors.PayloadTooLarge("x"), 413, "request_too_large"),
        (errors.UnsupportedMediaType("x"), 400, "invalid_request_error"),
        (errors.Unprocessable("x"), 422, "invalid_request_error"),
        (errors.RateLimited("x"), 429, "rate_limit_error"),
        (errors.Overloaded("x"), 529, "overloaded_error"),
        (errors.InternalError("x"), 500, "api_error"),
        (errors.UpstreamError("x"), 500, "api_error"),
        (errors.Unavailable("x"), 529, "overloaded_error"),
        (errors.ModelLoading("x"), 529, "overloaded_error"),
        (errors.LoadFailed("x"), 529, "overloaded_error"),
        (errors.DeviceLost("x"), 529, "overloaded_error"),
        (errors.NoHealthyNode("x"), 529, "overloaded_error"),
        (errors.NoFeasibleNode("x"), 529, "overloaded_error"),
    ],
)
def test_anthropics_status_and_type(error, status, kind):
    found, headers, body = anthropic(error, "req_1")
    assert (found, body["error"]["type"]) == (status, kind)
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }
    assert headers["request-id"] == "req_1"


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_an_answer_in_both_dialects(cls):
    status, _, body = openai(cls("x"))
    assert status == cls.status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    status, _, body = anthropic(cls("x"), "req_1")
    assert 400 <= status < 600
    assert body["error"]["message"] == "x"


def test_retry_hints_are_the_same_in_both_dialects():
    for error in (errors.Overloaded("x", retry_after=2.1), errors.NoFeasibleNode("x")):
        _, headers, _ = openai(error)
        _, told, _ = anthropic(error, "req_1")
        assert told == {**headers, "request-id": "req_1"}
    assert openai(errors.Overloaded("x", retry_after=2.1))[1] == {"retry-after": "3"}
    assert openai(errors.NoFeasibleNode("x"))[1] == {"x-should-retry": "false"}


def too_long(prompt, limit, context, model=None):
    extras = {"prompt_tokens": prompt, "max_tokens": limit, "context": context}
    error = errors.ContextLengthExceeded("as the neuron says", extras=extras)
    status, _, body = anthropic(error, "req_1", model=model)
    assert status == 400
    return body["error"]["message"]


def test_the_texts_by_which_clients_compact_and_resize():
    assert too_long(300, None, 200) == "prompt is too long: 300 tokens > 200 maximum"
    assert too_long(300, 5, 200) == "prompt is too long: 300 tokens > 200 maximum"
    assert too_long(200, 5, 200) == "prompt is too long: 200 tokens > 199 maximum"
    assert too_long(150, 60, 200) == (
        "input length and `max_tokens` exceed context limit: 150 + 60 > 200"
    )
    assert too_long(150, 900, 200, "m") == (
        "max_tokens: 900 > 200, which is the maximum allowed number of output tokens for m"
    )


def test_an_overflow_without_numbers_keeps_its_own_text():
    error = errors.ContextLengthExceeded("as the neuron says")
    assert anthropic(error, "req_1")[2]["error"]["message"] == "as the neuron says"
    assert too_long(5, None, 200) == "as the neuron says"


def test_an_unknown_model_is_named_as_it_was_asked_for():
    error = errors.ModelNotFound("no such model; similar names: qwen3")
    told = anthropic(error, "req_1", model="qwen")[2]["error"]["message"]
    assert told == "model: qwen (no such model; similar names: qwen3)"
    assert anthropic(error, "req_1", model="a\nb")[2]["error"]["message"].startswith("model: a�b")


def test_codes_that_clients_look_for_are_details():
    error = errors.BadRequest("x", code="tool_name_conflict")
    assert anthropic(error, "r")[2]["error"]["details"] == {"error_code": "tool_name_conflict"}


def test_frames_within_streams():
    error = errors.Overloaded("x")
    assert wire_errors.frame(error) == (
        b'data: {"error":{"message":"x","type":"rate_limit_error","param":null,'
        b'"code":"overloaded"}}\n\n'
    )
    assert anthropic_frame(error, "req_1") == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"},'
        b'"request_id":"req_1"}\n\n'
    )
