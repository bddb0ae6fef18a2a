"""Requests whose framing or head means harm, on raw sockets."""

from __future__ import annotations

import json

import pytest
from fakes.gateway import CHAT, MESSAGES, chat

GOOD = json.dumps(chat()).encode()
SECOND = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def request(*lines: bytes, body: bytes = b"", path: str = CHAT, method: str = "POST") -> bytes:
    head = [b"%b %b HTTP/1.1" % (method.encode(), path.encode()), b"host: x", *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CHUNKED_BODY = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
LENGTH = b"content-length: %d" % len(GOOD)

AMBIGUOUS = {
    "both": request(LENGTH, b"transfer-encoding: chunked", body=CHUNKED_BODY),
    "both-reversed": request(b"transfer-encoding: chunked", LENGTH, body=CHUNKED_BODY),
    "identity": request(b"transfer-encoding: chunked, identity", body=CHUNKED_BODY),
    "xchunked": request(b"transfer-encoding: xchunked", body=CHUNKED_BODY),
    "two-lengths": request(LENGTH, b"content-length: 1", body=GOOD),
    "listed-lengths": request(b"content-length: %d, 1" % len(GOOD), body=GOOD),
    "plus": request(b"content-length: +%d" % len(GOOD), body=GOOD),
    "negative": request(b"content-length: -1", body=GOOD),
    "hex": request(b"content-length: 0x10", body=GOOD),
    "space-before-colon": request(b"content-length : %d" % len(GOOD), body=GOOD),
    "bad-chunk": request(b"transfer-encoding: chunked", body=b"zz\r\n" + GOOD),
    "header-nul": request(LENGTH, b"x-a: a\0b", body=GOOD),
    "no-colon": request(LENGTH, b"nonsense", body=GOOD),
    "binary": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "giant-header": request(LENGTH, b"x-a: " + b"y" * 200_000, body=GOOD),
    "many-headers": request(LENGTH, *[b"x-%d: y" % n for n in range(20_000)], body=GOOD),
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_what_cannot_be_framed_is_refused_and_nothing_after_it_is_read(
    attacked, neuron, data
):
    before = neuron.counts[CHAT]
    try:
        answer = await attacked.raw(data + SECOND)
    except OSError:
        answer = b""  # closed at once, with what it had not read: a reset
    assert not answer or answer.split()[1] in (b"400", b"413", b"431", b"501")
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert neuron.counts[CHAT] == before


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_two_framings_are_told_in_the_dialect_and_end_the_connection(attacked, path):
    data = request(LENGTH, b"transfer-encoding: chunked", body=CHUNKED_BODY, path=path)
    answer = await attacked.raw(data)
    assert answer.startswith(b"HTTP/1.1 400")
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "message" in body["error"]
    assert ("request_id" in body) is (path == MESSAGES)


async def test_a_length_that_is_too_small_does_not_let_the_rest_be_a_request(attacked, neuron):
    before = neuron.counts[CHAT]
    answer = await attacked.raw(request(b"content-length: 5", b"connection: close", body=GOOD))
    assert answer.startswith(b"HTTP/1.1 400")
    assert neuron.counts[CHAT] == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../metrics",
        "/v1/models/%2e%2e/%2e%2e/metrics",
        "//v1//models",
        "/v1/models/%252e%252e/x",
        "/fleet/../fleet/models/load",
        "/V1/MODELS",
        "/v1/models/m%00",
    ],
)
async def test_a_path_is_never_normalised_into_another_route(attacked, path):
    answer = await attacked.raw(request(b"connection: close", path=path, method="GET"))
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("given", [b'a"b', b"x" * 10_000, b"a b", "é".encode(), b"a\tb"])
async def test_a_harmful_request_id_is_replaced(attacked, given):
    answer = await attacked.raw(
        request(b"connection: close", b"x-request-id: " + given, path="/health", method="GET")
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert given not in answer
    assert b"req_" in answer


WEBSOCKET = (
    b"connection: upgrade",
    b"upgrade: websocket",
    b"sec-websocket-version: 13",
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize("path", ["/health", CHAT, "/nope"])
@pytest.mark.parametrize("lines", [WEBSOCKET, WEBSOCKET[:2]], ids=["whole", "half"])
async def test_a_websocket_is_declined(attacked, path, lines):
    answer = await attacked.raw_start(request(*lines, path=path, method="GET"))
    assert answer.startswith(b"HTTP/1.1 426")
    assert b"\r\nupgrade:" not in answer.lower()


H2C = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAAP__")


async def test_an_offer_of_http_2_is_not_taken_up(attacked):
    data = request(*H2C, path="/livez", method="GET")
    data += request(b"connection: close", path="/livez", method="GET")
    answer = await attacked.raw(data)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"101" not in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "first", [b"", request(path="/livez", method="GET")], ids=["at-once", "then"]
)
async def test_the_preface_of_http_2_is_400_and_the_end(attacked, first):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    answer = await attacked.raw(first + preface)
    assert b"HTTP/1.1 400" in answer
    assert answer.count(b"HTTP/1.1") == 1 + bool(first)


async def test_an_expectation_that_nobody_can_meet_is_417(attacked, neuron):
    before = neuron.counts[CHAT]
    lines = (LENGTH, b"connection: close", b"expect: miracles")
    answer = await attacked.raw(request(*lines, body=GOOD))
    assert answer.startswith(b"HTTP/1.1 417")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert neuron.counts[CHAT] == before


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/models", "/fleet"])
async def test_a_preflight_learns_the_methods_and_gets_no_leave(attacked, path):
    lines = (b"origin: https://evil.example", b"access-control-request-method: POST")
    answer = await attacked.raw(request(*lines, b"connection: close", path=path, method="OPTIONS"))
    assert answer.startswith(b"HTTP/1.1 204")
    allow = b"GET, HEAD, OPTIONS" if path in ("/v1/models", "/fleet") else b"OPTIONS, POST"
    assert b"\r\nallow: %b\r\n" % allow in answer
    assert b"access-control" not in answer.lower()


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(attacked):
    data = request(LENGTH, b"expect: 100-continue", b"connection: close", body=GOOD)
    answer = await attacked.raw(data)
    assert b"HTTP/1.1 200" in answer


async def test_pipelined_requests_are_answered_in_order(attacked):
    data = request(path="/version", method="GET") * 20
    data += request(b"connection: close", path="/livez", method="GET")
    answer = await attacked.raw(data)
    assert answer.count(b"HTTP/1.1 200") == 21
    assert answer.endswith(b'{"status":"alive"}')
