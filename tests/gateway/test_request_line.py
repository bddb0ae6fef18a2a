"""Every request ends in exactly one line of the log, on both lanes, however it ends."""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.accounts import add_key
from fakes.gateway import CHAT, MESSAGES, chat, gateway, message
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply

ID = "asked-by-a-test"
FAST_AND_SLOW = pytest.mark.parametrize("fast", [True, False], ids=["fast", "hypercorn"])
MANY = 1_200_000


@pytest.fixture
def lines(caplog):
    """The ends of requests that carry `ID`, once there is one; none comes after it."""
    caplog.set_level(logging.DEBUG, "cortex")

    async def read():
        with trio.fail_after(5):
            while not _ends(caplog):
                await trio.sleep(0.01)
        await trio.sleep(0.05)
        return [record.cortex_fields for record in _ends(caplog)]

    return read


def _ends(caplog):
    return [r for r in caplog.records if (r.name, r.msg) == ("cortex.gateway.request", "request")]


def neuron(frames=None, *, abort=False):
    made = FakeNeuron("a")
    made.hold("m")
    if frames is not None:
        made.scripts[CHAT] = lambda asked: Reply(
            frames=frames, content_type="text/event-stream", abort=abort
        )
    return made


@asynccontextmanager
async def serving(fast, made=None, **options):
    with trio.fail_after(20):
        async with gateway(made or neuron(), fast_lane=fast, **options) as served:
            yield served


async def post(served, path=CHAT, body=None, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body or chat()).encode()
    named = {"x-request-id": ID, "content-type": "application/json", **headers}
    return await served.client.post(path, content=data, headers=named)


# Path, body, status, how it ends.
PLAIN = [
    (CHAT, chat(), 200, "stop"),
    (CHAT, chat(stream=True), 200, "stop"),
    (MESSAGES, message(), 200, "stop"),
    (MESSAGES, message(stream=True), 200, "stop"),
    (CHAT, b"{", 400, "invalid_json"),
    (CHAT, chat(temperature="hot"), 400, "invalid_request"),
    (CHAT, chat("nowhere"), 404, "model_not_found"),
    (CHAT, chat("nowhere", stream=True), 404, "model_not_found"),
    (MESSAGES, message("nowhere"), 404, "model_not_found"),
    (f"{MESSAGES}/count_tokens", message("nowhere"), 404, None),
    ("/v1/responses/compact", {}, 404, None),
    ("/v1/nothing", {}, 404, None),
]


@FAST_AND_SLOW
@pytest.mark.parametrize(("path", "body", "code", "end"), PLAIN)
async def test_what_is_answered(lines, fast, path, body, code, end):
    async with serving(fast) as served:
        answer = await post(served, path, body)
        assert (answer.status_code, answer.headers["x-request-id"]) == (code, ID)
        (line,) = await lines()
    assert line["code"] == code
    if code == 200:
        assert line["end"] == end
    else:
        assert line["end"] not in ("complete", "stop", "")


@FAST_AND_SLOW
async def test_a_wrong_key(lines, fast, tmp_path):
    add_key(tmp_path, "alice")
    async with serving(fast, state_directory=tmp_path) as served:
        answer = await post(served, authorization="Bearer wrong")
        (line,) = await lines()
    assert answer.status_code == line["code"] == 401
    assert line["end"] == "invalid_api_key"


@FAST_AND_SLOW
async def test_a_body_that_is_too_large(lines, fast):
    async with serving(fast, max_body_mb=1) as served:
        answer = await post(served, body=b" " * MANY)
        (line,) = await lines()
    assert answer.status_code == line["code"] == 413


@FAST_AND_SLOW
@pytest.mark.parametrize(
    "head",
    [
        "content-length: 2\r\ntransfer-encoding: chunked",
        "content-length: 2\r\ncontent-type: a/b\r\nauthorization: a\r\nauthorization: b",
    ],
)
async def test_a_head_that_means_two_things(lines, fast, head):
    async with serving(fast) as served:
        told = await served.raw(
            f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{head}\r\n\r\n{{}}".encode()
        )
        assert told.startswith(b"HTTP/1.1 400")
        (line,) = await lines()
    assert line["code"] == 400


@FAST_AND_SLOW
async def test_an_upstream_that_refuses(lines, fast):
    made = neuron()
    made.scripts[CHAT] = lambda asked: error_reply(500, "internal_error")
    async with serving(fast, made) as served:
        answer = await post(served)
        (line,) = await lines()
    assert answer.status_code == line["code"] >= 500


@FAST_AND_SLOW
@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_breaks(lines, fast, stream):
    frames = [chunk("m", {"content": "a"})] if stream else [b'{"choices"']
    async with serving(fast, neuron(frames, abort=True)) as served:
        await post(served, body=chat(stream=stream))
        (line,) = await lines()
    assert (line["code"], line["end"]) == (502, "upstream_error")


@FAST_AND_SLOW
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves(lines, fast, stream):
    made = neuron([chunk("m", {"content": "a"}), 30.0])
    async with serving(fast, made) as served:
        with trio.move_on_after(0.3):
            async with served.stream(chat(stream=stream), headers={"x-request-id": ID}) as reading:
                await reading.until(b'"a"')
        (line,) = await lines()
    assert (line["code"], line["end"]) == (499, "client_gone")


@FAST_AND_SLOW
async def test_a_client_that_leaves_within_its_body(lines, fast):
    async with serving(fast) as served:
        host, port = served.api.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(
                f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{{".encode()
            )
            await trio.sleep(0.1)
        (line,) = await lines()
    assert line["code"] in (400, 499)


@FAST_AND_SLOW
async def test_a_gateway_that_shuts_down(lines, fast):
    made = neuron([chunk("m", {"content": "a"}), 30.0])
    async with (
        serving(fast, made, drain_seconds=0.2) as served,
        served.stream(chat(stream=True)) as reading,
    ):
        await reading.until(b'"a"')
        served.stop.set()
        (line,) = await lines()
    assert (line["code"], line["end"]) == (503, "draining")


@FAST_AND_SLOW
async def test_every_line_about_a_request_has_its_id_and_the_neuron_is_told_it(lines, fast, caplog):
    from cortex.service import logs

    seen = []

    class Watching(logging.Handler):
        def emit(self, record):
            seen.append((record.msg, logs.request_id.get()))

    made = neuron()
    made.scripts[CHAT] = lambda asked: error_reply(500, "internal_error")
    handler = Watching()
    logging.getLogger("cortex.gateway").addHandler(handler)
    try:
        async with serving(fast, made) as served:
            await post(served)
            await lines()
    finally:
        logging.getLogger("cortex.gateway").removeHandler(handler)
    assert ("request", ID) in seen
    assert ("upstream trouble", ID) in seen
    assert made.last(CHAT).headers["x-request-id"] == ID
