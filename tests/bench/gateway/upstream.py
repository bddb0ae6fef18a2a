"""An upstream that costs next to nothing: a neuron without a model, behind every gateway measured.

    python tests/bench/gateway/upstream.py PORT

It answers chat completions with JSON of some 350 bytes, or a stream of 32 chunks, a finish reason,
usage and ``[DONE]``; and what a gateway asks before it considers the model loaded: a neuron's
management routes, and vLLM's and SGLang's. Chunks are written as fast as they are taken. A request
whose text holds `PACED` gets one every `PACE_SECONDS` instead, and its text is the time at which it
was written (nanoseconds of the monotonic clock), which tells the reader how long it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httptools

MODEL = "mock"
CHUNKS = 32
PACED = b"at a pace"
PACE_SECONDS = 0.01
USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": 12 + CHUNKS}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def whole(value: Any, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One chunk of the stream, as one chunk of the body."""
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def delta(finish: str | None = None, **fields: Any) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": fields, "finish_reason": finish}]


ANSWER = whole(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, how can I help you today?"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22},
    }
)
FIRST = event(delta(role="assistant", content=""))
TOKEN = event(delta(content=" token"))
LAST = event(delta("stop")) + event([], usage=USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

DEVICE = {"index": 0, "name": "Mock", "kind": "cuda", "vram_total_mb": 24_000}
SHAPE = {"id": MODEL, "object": "model", "created": 1, "owned_by": "mock", "root": MODEL}
ROUTES: dict[bytes, Any] = {
    # a cortex neuron's
    b"/discovery": {"hostname": "mock", "os": "linux", "kernel": "6", "devices": [DEVICE]},
    b"/models": [{"id": MODEL, "status": "loaded", "devices": [0], "harness": "torch"}],
    b"/version": {"version": "0.0"},
    b"/health": {
        "uptime_secs": 1.0,
        "status": "ok",
        "devices": [{"index": 0, "vram_used_mb": 1_000, "vram_free_mb": 23_000}],
        "models": [{"id": MODEL, "max_in_flight": 1_024, "max_queue_depth": 64}],
    },
    # vLLM's and SGLang's
    b"/v1/models": {"object": "list", "data": [{**SHAPE, "max_model_len": 8_192}]},
    b"/get_model_info": {"model_path": MODEL, "is_generation": True, "tokenizer_path": ""},
    b"/model_info": {"model_path": MODEL, "is_generation": True, "tokenizer_path": ""},
    b"/get_server_info": {"model_path": MODEL, "served_model_name": MODEL, "version": "0.5"},
    b"/server_info": {"model_path": MODEL, "served_model_name": MODEL, "version": "0.5"},
}


class Connection(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)
        self.path, self.body = b"", b""
        self.streaming: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.streaming is not None:
            self.streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self.path, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        path = self.path.partition(b"?")[0]
        if not path.endswith(b"/completions"):
            self.transport.write(self.managed(path))
        elif b'"stream":true' in self.body.replace(b'": ', b'":'):
            paced = PACED in self.body
            self.streaming = asyncio.create_task(self.paced() if paced else self.streamed())
        else:
            self.transport.write(ANSWER)

    # answers

    def managed(self, path: bytes) -> bytes:
        if path.startswith(b"/models/") and path.endswith(b"/endpoint"):
            host, port = self.transport.get_extra_info("sockname")[:2]
            return whole({"url": f"http://{host}:{port}"})
        value = ROUTES.get(path)
        if value is None:
            return whole({"error": {"message": "no such route", "code": "nope"}}, "404 Not Found")
        return whole(value)

    async def streamed(self) -> None:
        self.transport.write(STREAM_HEAD + FIRST)
        for _ in range(CHUNKS):
            self.transport.write(TOKEN)
            await asyncio.sleep(0)  # a chunk at a time, as an engine's steps bring them
        self.transport.write(LAST)

    async def paced(self) -> None:
        self.transport.write(STREAM_HEAD + FIRST)
        for _ in range(CHUNKS):
            await asyncio.sleep(PACE_SECONDS)
            self.transport.write(event(delta(content=f" {time.monotonic_ns()}")))
        self.transport.write(LAST)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
