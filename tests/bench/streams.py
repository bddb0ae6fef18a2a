"""Throughput of a running gateway or neuron: ``python tests/bench/streams.py URL MODEL STREAMS``.

Each stream asks for the same number of tokens, end-of-sequence ignored. Prints tokens per second of
all streams together, the median time to the first token, and the longest pause between two. Run
outside the test suite: timings decide no test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import attrs
import httpx
import orjson
import trio

from cortex.wire.sse import FrameReader

TOKENS = 100


@attrs.define
class Seen:
    """Seconds since the request was sent; ``tokens`` as the server counted them."""

    first: float = 0.0
    last: float = 0.0
    longest_pause: float = 0.0
    tokens: int = 0

    def take(self, chunk: dict[str, Any], now: float) -> None:
        if chunk.get("usage"):
            self.tokens = chunk["usage"]["completion_tokens"]
        if not chunk["choices"] or not chunk["choices"][0]["delta"]:
            return
        if not self.first:
            self.first = now
        elif self.last:
            self.longest_pause = max(self.longest_pause, now - self.last)
        self.last = now


async def ask(client: httpx.AsyncClient, model: str, tokens: int, seen: list[Seen]) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reader, mine, sent = FrameReader(), Seen(), time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for data in response.aiter_raw():
            now = time.perf_counter() - sent
            for frame in reader.feed(data):
                if frame.data not in (None, b"[DONE]"):
                    mine.take(orjson.loads(frame.data), now)
    seen.append(mine)


async def main(arguments: Sequence[str]) -> None:
    url, model, streams = arguments[0], arguments[1], int(arguments[2])
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await ask(client, model, 8, [])  # the first request pays for what is lazy
        seen: list[Seen] = []
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(ask, client, model, TOKENS, seen)
        seconds = time.perf_counter() - started
    first = sorted(each.first for each in seen)[len(seen) // 2]
    pause = max(each.longest_pause for each in seen)
    total = sum(each.tokens for each in seen)
    print(
        f"streams={streams} tokens={total} tok/s={total / seconds:.0f} "
        f"first token={first * 1000:.0f} ms longest pause={pause * 1000:.0f} ms"
    )


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
