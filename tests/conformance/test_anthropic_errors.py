"""AE: errors in Anthropic's words."""

from __future__ import annotations

import anthropic
import pytest
from conformance.checks import MESSAGES, Server, told
from fakes.neuron import Reply, error_reply

# A neuron's answer -> the status and type that a client gets.
FAULTS: dict[str, tuple[Reply, int, str]] = {
    "AE01-400": (error_reply(400, "invalid_value"), 400, "invalid_request_error"),
    "AE01-409": (error_reply(409, "conflict"), 409, "conflict_error"),
    "AE01-413": (error_reply(413, "request_too_large"), 413, "request_too_large"),
    "AE01-429": (error_reply(429, "rate_limit_exceeded"), 429, "rate_limit_error"),
    "AE01-500": (error_reply(500, "internal_error"), 500, "api_error"),
    "AE01-502": (error_reply(502, "upstream_error"), 500, "api_error"),
    "AE01-503": (error_reply(503, "service_unavailable"), 529, "overloaded_error"),
    "AE01-load": (error_reply(503, "load_failed"), 529, "overloaded_error"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("reply", "status", "kind"), FAULTS.values(), ids=FAULTS.keys())
def test_ae01_ae02_each_fault_has_its_status_and_type(
    scripted: Server, reply: Reply, status: int, kind: str, stream: bool
) -> None:
    scripted.says(reply)
    response = scripted.post(MESSAGES, scripted.message_body(stream=stream))
    assert told(response, status, anthropic=True)["type"] == kind
    assert ("retry-after" in response.headers) == (status in (429, 529))


@pytest.mark.parametrize("path", ["", "/batches", "/nonsense"], ids="AE03-{}".format)
def test_ae03_routes_that_are_none_are_404_in_the_dialect(scripted: Server, path: str) -> None:
    method = "GET" if path else "PUT"
    status = 404 if path else 405
    response = scripted.client.request(method, f"{MESSAGES}{path}")
    assert told(response, status, anthropic=True)


@pytest.mark.parametrize("path", ["messages/batches", "files", "skills"], ids="AE08-{}".format)
def test_ae08_what_only_the_vendor_has_is_404(scripted: Server, path: str) -> None:
    response = scripted.client.get(f"/v1/{path}")
    assert told(response, 404, anthropic=path.startswith("messages"))
    response = scripted.client.get(f"/v1/{path}", headers={"anthropic-version": "2023-06-01"})
    assert told(response, 404, anthropic=True)


def test_ae04_the_sdk_asks_again_when_it_is_told_to(scripted: Server) -> None:
    replies = [error_reply(503, "service_unavailable", retry_after=0)]
    scripted.gateway.neuron.scripts["/v1/chat/completions"] = lambda asked: (
        replies.pop() if replies else None
    )
    response = scripted.post(MESSAGES, scripted.message_body())
    assert response.status_code == 529
    assert response.headers["retry-after"] == "0"
    replies.append(error_reply(503, "service_unavailable", retry_after=0))
    with anthropic.Anthropic(base_url=scripted.gateway.url, api_key="none", max_retries=1) as sdk:
        assert sdk.messages.create(**scripted.message_body()).content


def test_ae05_a_body_over_the_limit_is_413(scripted: Server) -> None:
    body = b'{"model": "' + b"m" * (1 << 20) + b'"}'
    error = scripted.refused(MESSAGES, body, 413)
    assert error["type"] == "request_too_large"


def test_ae06_what_is_no_json_is_said_to_be_none(scripted: Server) -> None:
    assert "not valid JSON" in scripted.refused(MESSAGES, b'{"model":')["message"]


def test_ae07_a_neuron_that_breaks_is_worth_another_try(scripted: Server) -> None:
    scripted.says(Reply(frames=(b'{"id":',), abort=True))
    response = scripted.post(MESSAGES, scripted.message_body())
    assert told(response, 500, anthropic=True)["type"] == "api_error"
    assert response.headers["x-should-retry"] == "true"
