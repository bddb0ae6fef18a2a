"""Streams through gateway and neuron with the real engine: many, drained, left, stalled."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import trio
from fakes.stack import Stack, chat_body, stack

from cortex.neuron.sources import DEMO_DIRECTORY
from cortex.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

LONG = {"max_tokens": 4000, "ignore_eos": True}


def text_of(payloads: list[str]) -> str:
    chunks = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def finishes(payloads: list[str]) -> list[str]:
    chunks = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c.get("choices")]
    return [reason for reason in reasons if reason]


async def test_two_hundred_concurrent_streams_finish_and_none_is_mixed(tmp_path: Path):
    tokenizer = Tokenizer.from_directory(DEMO_DIRECTORY)
    # Words of the vocabulary that stand for themselves; each stream may say one of them only.
    words = [
        token
        for token in range(300, tokenizer.vocab_size - 20)
        if tokenizer.token_bytes(token).isalpha()
    ][:200]
    assert len(words) == 200
    answers: dict[int, list[str]] = {}
    async with stack(tmp_path) as it:

        async def one(token: int) -> None:
            fields = {"max_tokens": 4, "logit_bias": {str(token): 100}, "ignore_eos": True}
            async with it.stream("hello", **fields) as payloads:
                answers[token] = [payload async for payload in payloads]

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for token in words:
                    nursery.start_soon(one, token)
        await it.until_idle()
    for token in words:
        expected = tokenizer.token_bytes(token).decode() * 4
        assert text_of(answers[token]) == expected
        assert finishes(answers[token]) == ["length"]
        assert answers[token][-1] == "[DONE]"


async def test_a_stop_drains_the_streams_that_run(tmp_path: Path):
    async with stack(tmp_path) as it, it.stream("hello", max_tokens=60, ignore_eos=True) as lines:
        received = [await anext(lines), await anext(lines)]
        it.stop_gateway.set()
        received += [line async for line in lines]
        assert received[-1] == "[DONE]"
        assert finishes(received) == ["length"]
        with trio.fail_after(5):
            await it.gateway_ended.wait()


async def test_a_client_that_leaves_mid_stream_frees_its_seat_within_a_second(tmp_path: Path):
    async with stack(tmp_path) as it:
        async with it.stream("hello", **LONG) as payloads:
            await anext(payloads)
            await anext(payloads)
            assert await it.seats_taken() == 1
        await it.until_idle(1.0)
        exposition = (await it.client.get(f"{it.metrics}/metrics")).text
        assert "cortex_client_disconnects_total" in exposition


async def test_a_client_that_leaves_in_prefill_frees_its_seat_within_a_second(tmp_path: Path):
    async with stack(tmp_path, neuron={"max_batch_tokens": 64}) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.chat, "word " * 12_000)
            with trio.fail_after(20):
                while not await it.seats_taken():
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        await it.until_idle(1.0)


async def test_a_client_that_leaves_the_queue_leaves_nothing_behind(tmp_path: Path):
    async with stack(tmp_path, neuron={"max_batch": 1, "max_queue_depth": 1}) as it:
        async with trio.open_nursery() as nursery:
            for _ in range(4):  # one runs, one waits in the neuron, two in the gateway
                nursery.start_soon(_read_all, it, LONG)
            with trio.fail_after(20):
                while await it.seats_taken() < 2:
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        await it.until_idle(1.0)
        assert (await it.chat("hello", max_tokens=2)).status_code == 200


async def _read_all(it: Stack, fields: dict) -> None:
    async with it.stream("hello", **fields) as payloads:
        async for _ in payloads:
            pass


async def test_a_client_that_stops_reading_blocks_neither_others_nor_the_shutdown(tmp_path: Path):
    settings = {"stall_seconds": 1.0, "drain_seconds": 2.0}
    async with stack(tmp_path, gateway=settings) as it:
        host, port = it.api.removeprefix("http://").split(":")
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await trio.to_thread.run_sync(raw.connect, (host, int(port)))
        body = json.dumps(chat_body("hello", stream=True, **LONG)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        raw.sendall(head % len(body) + body)
        with trio.fail_after(10):
            answer = await it.chat("What is cortex?", max_tokens=5)
        assert answer.status_code == 200
        it.stop_gateway.set()
        with trio.fail_after(10):
            await it.gateway_ended.wait()
        raw.close()
