"""Every request to a neuron ends in exactly one line of its log, however it ends."""

from __future__ import annotations

import json
import logging
import threading

import httpx
import pytest
import trio
from fakes.engine import FakeEngine
from fakes.served_neuron import MODEL, served

CHAT = "/v1/chat/completions"


def chat(model=MODEL, **fields):
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, "cortex")

    def ends():
        named = ("cortex.neuron.request", "request")
        return [r.cortex_fields for r in caplog.records if (r.name, r.msg) == named]

    async def read():
        with trio.fail_after(5):
            while not ends():
                await trio.sleep(0.01)
        await trio.sleep(0.05)
        return ends()

    return read


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (CHAT, chat(max_tokens=2), 200),
        (CHAT, chat(max_tokens=2, stream=True), 200),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2}, 200),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2, "stream": True}, 200),
        ("/tokenize", {"model": MODEL, "prompt": "a"}, 200),
        (CHAT, b"{", 400),
        (CHAT, chat(n=100, stream=True), 400),
        (CHAT, chat("nowhere"), 404),
        (CHAT, chat("nowhere", stream=True), 404),
        ("/v1/nothing", {}, 404),
    ],
)
async def test_what_is_answered(lines, path, body, code):
    async with served() as neuron:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await neuron.client.post(path, content=data)
        assert answer.status_code == code
        (line,) = await lines()
    assert line.get("code", 200) == code
    assert line["path"] == path


async def test_a_wrong_token(lines):
    async with served(token="right") as neuron:
        answer = await neuron.client.post(CHAT, json=chat(), headers={"authorization": "Bearer no"})
        assert answer.status_code == 401
        (line,) = await lines()
    assert line["code"] == 401


async def test_a_draining_neuron(lines):
    async with served() as neuron:
        neuron.admission.close()
        answer = await neuron.client.post(CHAT, json=chat())
        assert answer.status_code == 503
        (line,) = await lines()
    assert line["code"] == 503


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves(lines, stream):
    gate = threading.Event()
    async with served(lambda: FakeEngine(gate=gate)) as neuron:
        try:
            with trio.move_on_after(0.2):
                await neuron.client.post(CHAT, json=chat(stream=stream))
            (line,) = await lines()
        finally:
            gate.set()
    assert line["end"] == "client_gone"


async def test_a_drain_that_is_over(lines):
    """Cut off by the neuron itself: the client has not left."""
    gate = threading.Event()
    async with served(lambda: FakeEngine(gate=gate), drain_seconds=0.1) as neuron:

        async def ask() -> None:
            with pytest.raises(httpx.HTTPError):  # the connection ends under it
                await neuron.client.post(CHAT, json=chat())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not neuron.admission.seats(MODEL).taken:
                await trio.sleep(0.01)
            neuron.stop.set()
            (line,) = await lines()
            gate.set()
    assert line["end"] == "draining"
