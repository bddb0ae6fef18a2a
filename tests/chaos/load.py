"""Load from HTTP clients, and the ledger of how each of their requests ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import trio

from chaos.neuron import MODEL
from cortex.wire.sse import FrameReader

BOUND = 60.0  # seconds in which every call has ended, whatever happens
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"

# How a request ended, as its client saw it.
WHOLE = "whole"  # with its end
REFUSED = "refused"  # with a status
TOLD = "told"  # by an error event within its stream
CUT = "cut"  # its connection broke
UNREACHED = "unreached"  # there was nobody to ask
LEFT = "left"  # its client went away before
HUNG = "hung"  # not within `BOUND`
LIED = "lied"  # it looked whole and was not


@attrs.frozen
class Outcome:
    kind: str
    status: int = 0
    prompt: int = 0
    completion: int = 0
    seconds: float = 0.0
    detail: str = ""


@attrs.define(eq=False)
class Ledger:
    outcomes: list[Outcome] = attrs.field(factory=list)

    def of(self, *kinds: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind in kinds]

    @property
    def kinds(self) -> Counter[str]:
        return Counter(outcome.kind for outcome in self.outcomes)

    @property
    def whole(self) -> tuple[int, int, int]:
        """As `Gateway.usage`, for what clients have seen."""
        whole = self.of(WHOLE)
        return len(whole), sum(o.prompt for o in whole), sum(o.completion for o in whole)


@attrs.define
class _Reading:
    """What a client makes of a stream's events, in either dialect."""

    ended: bool = False
    finished: bool = False
    error: str = ""
    prompt: int = 0
    completion: int = 0

    def take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.ended = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = str(event["error"])
            return
        self.ended = self.ended or event.get("type") == "message_stop"
        for choice in event.get("choices", ()):
            self.finished = self.finished or bool(choice.get("finish_reason"))
        message = event.get("message", event)
        self.finished = self.finished or bool(event.get("delta", {}).get("stop_reason"))
        self._count(message.get("usage") or {})

    def _count(self, usage: dict[str, Any]) -> None:
        self.prompt = usage.get("prompt_tokens", usage.get("input_tokens", self.prompt))
        self.prompt += usage.get("cache_read_input_tokens", 0)  # Anthropic's input excludes it
        told = usage.get("completion_tokens", usage.get("output_tokens", self.completion))
        self.completion = told


@attrs.define(eq=False)
class Client:
    """Asks *base*, each request on a connection of its own, and notes how it went."""

    base: str
    ledger: Ledger
    model: str = MODEL
    key: str | None = None
    content: str = "What is cortex?"
    sessions: int | None = None  # so many, in turns; None: each request is one of its own
    _asked: int = 0

    async def ask(self, path: str = CHAT, *, stream: bool = True, **fields: Any) -> Outcome:
        """One request, to its end."""
        began = trio.current_time()
        outcome = Outcome(LEFT)
        try:
            with trio.move_on_after(BOUND) as scope:
                outcome = await self._ask(path, stream, fields)
            if scope.cancelled_caught:
                outcome = Outcome(HUNG)
        finally:
            outcome = attrs.evolve(outcome, seconds=trio.current_time() - began)
            self.ledger.outcomes.append(outcome)
        return outcome

    async def _ask(self, path: str, stream: bool, fields: dict[str, Any]) -> Outcome:
        self._asked += 1
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"{self._asked}: {self.content}"}],
            "max_tokens": 10,
            "stream": stream,
            **fields,
        }
        if stream and path == CHAT:
            body["stream_options"] = {"include_usage": True}
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        if self.sessions is not None:
            headers["x-session-id"] = str(self._asked % self.sessions)
        reached = False
        try:
            async with (
                httpx.AsyncClient(base_url=self.base, timeout=BOUND, verify=False) as client,
                client.stream("POST", path, json=body, headers=headers) as response,
            ):
                reached = True
                if response.status_code != 200:
                    text = (await response.aread()).decode()
                    json.loads(text)["error"]["message"]  # in the shape of an error
                    return Outcome(REFUSED, response.status_code, detail=text)
                if stream:
                    return await self._read(response)
                usage = json.loads(await response.aread())["usage"]
                reading = _Reading()
                reading._count(usage)
                return Outcome(WHOLE, 200, reading.prompt, reading.completion)
        except httpx.TransportError as exc:
            at_all = reached or not isinstance(exc, httpx.ConnectError)
            return Outcome(CUT if at_all else UNREACHED, detail=repr(exc))

    async def _read(self, response: httpx.Response) -> Outcome:
        frames, reading = FrameReader(), _Reading()
        async for data in response.aiter_raw():
            for frame in frames.feed(data):
                if frame.data is not None:
                    reading.take(bytes(frame.data))
        # A node may break off behind its finish reason: then all text is there, and the end is not.
        if reading.ended and (reading.error or not reading.finished):
            kind = LIED
        elif reading.error:
            kind = TOLD
        else:
            kind = WHOLE if reading.ended else CUT
        return Outcome(kind, 200, reading.prompt, reading.completion, detail=reading.error)


# What clients ask in turn: path, streamed or not.
MIX = ((CHAT, True), (MESSAGES, True), (CHAT, False), (MESSAGES, False))


@asynccontextmanager
async def load(
    client: Client, clients: int = 8, pause: float = 0.02, **fields: Any
) -> AsyncIterator[Ledger]:
    """As many *clients* ask one thing after another, in all forms, until the block is left; then
    each finishes what it has begun."""
    over = trio.Event()

    async def one(number: int) -> None:
        while not over.is_set():
            path, stream = MIX[number % len(MIX)]
            number += 1
            outcome = await client.ask(path, stream=stream, **fields)
            # Who was refused comes back a little later, as clients do.
            await trio.sleep(pause if outcome.kind == WHOLE else 0.2)

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one, number)
        try:
            yield client.ledger
        finally:
            over.set()


async def until(ledger: Ledger, count: int, *kinds: str, seconds: float = 20) -> None:
    """Wait for so many outcomes of *kinds* from now on."""
    wanted = len(ledger.of(*kinds)) + count
    with trio.fail_after(seconds):
        while len(ledger.of(*kinds)) < wanted:
            await trio.sleep(0.02)
