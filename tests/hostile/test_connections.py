"""Connections that are used badly: dripped into, abandoned, reused after errors, old."""

from __future__ import annotations

import json
import socket
import struct

import pytest
import trio
from fakes.gateway import CHAT, MESSAGES, chat

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
GOOD = json.dumps(chat()).encode()
STREAMED = json.dumps(chat(stream=True)).encode()


def request(body: bytes, *lines: bytes, path: str = CHAT, version: bytes = b"1.1") -> bytes:
    head = [b"POST %b HTTP/%b" % (path.encode(), version), b"host: x", *lines]
    return b"\r\n".join([*head, b"content-length: %d" % len(body)]) + b"\r\n\r\n" + body


CLOSE = b"connection: close"
LAST = request(GOOD, CLOSE)


async def connect(served, data: bytes = b"") -> trio.SocketStream:
    host, port = served.api.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(data)
    return stream


def statuses(answer: bytes) -> list[bytes]:
    return [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]


async def test_an_old_client_gets_a_whole_answer_and_a_whole_stream(attacked):
    answer = await attacked.raw(request(GOOD, version=b"1.0"))
    assert statuses(answer) == [b"200"]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]
    streamed = await attacked.raw(request(STREAMED, version=b"1.0"))
    assert statuses(streamed) == [b"200"]
    assert b"transfer-encoding" not in streamed.lower()
    assert streamed.endswith(b"data: [DONE]\n\n")


ERRORS = {
    "not-json": request(b"nonsense"),
    "unknown-model": request(json.dumps(chat("nope")).encode()),
    "unknown-model-streamed": request(json.dumps(chat("nope", stream=True)).encode()),
    "encoding": request(GOOD, b"content-encoding: gzip"),
}


@pytest.mark.parametrize("bad", ERRORS.values(), ids=ERRORS.keys())
async def test_after_an_error_the_connection_goes_on_in_step(attacked, bad):
    answer = await attacked.raw(bad + request(GOOD) + bad + request(STREAMED) + LAST)
    first, second, third, fourth, fifth = statuses(answer)
    assert (second, fourth, fifth) == (b"200", b"200", b"200")
    assert first == third
    assert first.startswith(b"4")


async def test_a_hundred_pipelined_requests_are_answered_in_order(attacked):
    answer = await attacked.raw((request(GOOD) + ERRORS["unknown-model"]) * 50 + LAST)
    assert statuses(answer) == [b"200", b"404"] * 50 + [b"200"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95, 1.0])
async def test_a_client_that_leaves_within_its_request_frees_everything(
    attacked, neuron, how, share
):
    data = request(STREAMED)
    for _ in range(10):
        stream = await connect(attacked, data[: int(len(data) * share)])
        if how == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await stream.aclose()
    with trio.fail_after(2):
        while neuron.in_flight > 1:  # the stream that goes on all the while
            await trio.sleep(0.005)
        await attacked.until(1, "cortex_in_flight")


async def test_many_that_drip_or_sleep_hold_up_nobody(attacked):
    sleepers = [await connect(attacked, request(GOOD)[:n]) for n in range(0, 100, 2)]
    answer = await attacked.client.post(CHAT, json=chat())
    assert answer.status_code == 200
    for stream in sleepers:
        await stream.aclose()


HEADS = {
    "no-host": b"POST %b HTTP/1.1\r\ncontent-length: 0\r\n\r\n" % CHAT.encode(),
    "two-hosts": request(GOOD, b"host: y"),
    "two-keys": request(GOOD, b"authorization: Bearer a", b"authorization: Bearer b"),
    "two-other-keys": request(GOOD, b"x-api-key: a", b"X-Api-Key: b"),
    "bare-cr": request(GOOD, b"x-a: b\rc"),
    "gzip-chunked": request(b"", b"transfer-encoding: gzip, chunked"),
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
async def test_a_head_that_is_not_clear_is_refused_and_ends_the_connection(attacked, neuron, data):
    before = neuron.counts[CHAT]
    try:
        answer = await attacked.raw(data + LAST)
    except OSError:
        answer = b""  # closed at once, with what it had not read: a reset
    assert len(statuses(answer)) <= 1
    assert not answer or statuses(answer)[0] in (b"400", b"501")
    assert neuron.counts[CHAT] == before


async def test_an_offer_of_http_2_with_a_hot_request_is_not_taken_up(attacked):
    lines = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMA")
    answer = await attacked.raw(request(GOOD, *lines) + LAST)
    assert statuses(answer) == [b"200", b"200"]


async def test_a_client_that_talks_on_after_413_hears_it(attacked):
    data = request(b"").replace(b"length: 0", b"length: 9999999") + b"x" * 300_000
    async with await connect(attacked, data) as stream:
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")


async def test_requests_change_between_routes_of_both_lanes(attacked):
    cold = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    count = json.dumps({**chat(), "max_tokens": 5}).encode()
    data = request(GOOD) + cold + request(STREAMED) + request(count, path=MESSAGES) + cold + LAST
    answer = await attacked.raw(data)
    assert statuses(answer) == [b"200"] * 6
