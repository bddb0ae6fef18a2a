"""A neuron without an engine as a process, which behaves as badly as it is told. Run as a module.

    python -m chaos.neuron PORT [HOST]

``POST /chaos`` with a `Manner` changes how it answers from then on; ``GET /chaos`` tells what it is
doing. Its answers have as many words as ``max_tokens`` says, so that each one's use is known.
"""

from __future__ import annotations

import sys
from typing import Any

import attrs
import h11
import trio
from fakes.neuron import Asked, FakeNeuron, Reply, chunk, json_reply

MODEL = "chaos/model"
PROMPT_TOKENS = 7


@attrs.frozen
class Manner:
    """``gap`` seconds between two words; ``garbage`` one of `GARBAGE`, instead of an answer to
    requests of inference; ``sick``: to polls too. ``capacity`` requests at a time, it says."""

    gap: float = 0.01
    garbage: str | None = None
    sick: bool = False
    load_seconds: float = 0.0
    capacity: int = 64


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FRAME = chunk(MODEL, {"content": "half"})
# What is sent, and whether it goes on for ever.
GARBAGE: dict[str, tuple[bytes, bool]] = {
    "no-http": (b"\x16\x03\x01\x02\x00" + bytes(range(256)), False),
    "no-json": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{nonsense", False),
    "half-frame": (HEAD + chunked(FRAME) + chunked(FRAME[: len(FRAME) // 2]), False),
    "frame-of-nonsense": (HEAD + chunked(FRAME) + chunked(b"data: {nonsense\n\n") * 3, False),
    "half-head": (b"HTTP/1.1 200 OK\r\ncontent-ty", False),
    "endless-head": (b"HTTP/1.1 200 OK\r\n" + b"x-more: of it\r\n" * 100, True),
    "endless-frame": (HEAD + chunked(b"data: " + b"x" * 65536), True),
    "bad-chunk": (HEAD + chunked(FRAME) + b"zz\r\n", False),
}


@attrs.define(eq=False)
class ChaosNeuron(FakeNeuron):
    manner: Manner = Manner()
    host: str = "127.0.0.1"

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        self._started_at = trio.current_time()
        task_status.started(self.url)
        await trio.serve_listeners(self._connection, listeners)

    async def _answer(self, http: h11.Connection, stream: trio.SocketStream, asked: Asked) -> bool:
        inference = asked.path.startswith("/v1/")
        told = asked.path == "/chaos"
        if self.manner.garbage is None or told or not (inference or self.manner.sick):
            return await super()._answer(http, stream, asked)
        data, endless = GARBAGE[self.manner.garbage]
        self.in_flight += inference
        try:
            await stream.send_all(data)
            more = data.removeprefix(HEAD)
            while endless:
                await stream.send_all(more)
        finally:
            self.in_flight -= inference
        return False

    async def _reply(self, asked: Asked) -> Reply:
        self.requests.clear()  # or a long run would keep them all
        if asked.path == "/chaos":
            if asked.method == "POST":
                self.behave(Manner(**asked.json))
            return json_reply({"in_flight": self.in_flight, "most": self.most_in_flight})
        return await super()._reply(asked)

    def behave(self, manner: Manner) -> None:
        self.manner = manner
        self.model_loads = [{"id": MODEL, "max_in_flight": manner.capacity, "max_queue_depth": 0}]

    async def _load(self, asked: Asked) -> Reply:
        self.hold(asked.json["model_id"], "loading", progress={"stage": "weights"})
        await trio.sleep(self.manner.load_seconds)
        return await super()._load(asked)

    async def _chat(self, asked: Asked) -> Reply:
        self.words = ("word ",) * asked.json.get("max_tokens", 3)
        reply = await super()._chat(asked)
        if asked.json.get("stream"):
            return reply
        await trio.sleep(self.manner.gap * len(self.words))
        return reply

    def _stream(self, model: str, usage: dict[str, Any], timings: dict[str, Any]) -> list[Any]:
        spaced: list[Any] = []
        for frame in super()._stream(model, usage, timings):
            spaced += [self.manner.gap, frame]
        return spaced


async def main(port: int, host: str) -> None:
    neuron = ChaosNeuron("chaos", port=port, host=host)
    neuron.hold(MODEL)
    neuron.behave(Manner())
    async with trio.open_nursery() as nursery:
        await nursery.start(neuron.run)
        print(f"listening {neuron.url}", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1")
