"""A gateway and neurons in one trio run, on free ports, with the real engine."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import GatewayConfig, GatewaySettings, NeuronNode
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.gateway import app as gateway_app
from cortex.neuron import app as neuron_app
from cortex.wire.sse import FrameReader

DEMO = "cortex/demo"


class Payloads:
    """The payloads of a stream of events, one at a time. No generator that could be left open."""

    def __init__(self, response: httpx.Response) -> None:
        self._raw = response.aiter_raw()
        self._frames = FrameReader()
        self._ready: deque[str] = deque()

    def __aiter__(self) -> Payloads:
        return self

    async def __anext__(self) -> str:
        while not self._ready:
            data = await anext(self._raw)
            frames = self._frames.feed(data)
            self._ready += (frame.data.decode() for frame in frames if frame.data is not None)
        return self._ready.popleft()

    async def aclose(self) -> None:
        with trio.move_on_after(1, shield=True):
            await self._raw.aclose()


@attrs.define(eq=False)
class Stack:
    """``api`` and ``metrics`` are the gateway's URLs, ``neurons`` those of the neurons."""

    api: str
    metrics: str
    neurons: tuple[str, ...]
    client: httpx.AsyncClient
    stop_gateway: trio.Event
    gateway_ended: trio.Event

    async def chat(self, content: str, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(content, **fields))

    @asynccontextmanager
    async def stream(self, content: str, **fields: Any) -> AsyncIterator[Payloads]:
        """The ``data:`` payloads of a streamed chat completion."""
        body = chat_body(content, stream=True, **fields)
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            payloads = Payloads(response)
            try:
                yield payloads
            finally:
                await payloads.aclose()

    async def seats_taken(self, neuron: int = 0) -> int:
        """Completions in the engine of the first model of a neuron, running or waiting."""
        health = (await self.client.get(f"{self.neurons[neuron]}/health")).json()
        return sum(model["in_flight"] + model["queue_depth"] for model in health["models"])

    async def until_idle(self, seconds: float = 1.0, neuron: int = 0) -> None:
        """Wait until no seat is taken; TooSlowError when that takes longer than *seconds*."""
        with trio.fail_after(seconds):
            while await self.seats_taken(neuron):
                await trio.sleep(0.02)


def chat_body(content: str, **fields: Any) -> dict[str, Any]:
    body = {"model": DEMO, "messages": [{"role": "user", "content": content}], "temperature": 0}
    return {**body, **fields}


@asynccontextmanager
async def stack(
    state: Path,
    *,
    neurons: int = 1,
    models: Sequence[str] = (DEMO,),
    catalogue: Sequence[CatalogueEntry] = (),
    aliases: dict[str, str] | None = None,
    endpoints: Sequence[str] = (),
    neuron: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    token: str | None = None,
) -> AsyncIterator[Stack]:
    """*endpoints* are neurons that run elsewhere, beside those that are started here. *token* is
    what the gateway says to each."""
    async with trio.open_nursery() as nursery:
        stop_neurons, stop_gateway, ended = trio.Event(), trio.Event(), trio.Event()
        urls: list[str] = []
        for number in range(neurons):
            config = NeuronConfig(
                **{
                    "listen": "127.0.0.1:0",
                    "default_models": tuple(DefaultModel(model) for model in models),
                    "state_directory": state / f"neuron-{number}",
                    "threads": 1,
                    "drain_seconds": 5.0,
                    **(neuron or {}),
                }
            )
            run = partial(neuron_app.run, config, stop=stop_neurons.wait)
            urls.append(await nursery.start(run))
        for url in urls:
            await _activated(url, token)
        nodes = [
            NeuronNode(f"node-{n}", url, token=token) for n, url in enumerate([*urls, *endpoints])
        ]
        config = GatewayConfig(
            gateway=GatewaySettings(
                **{
                    "listen": "127.0.0.1:0",
                    "metrics_listen": "127.0.0.1:0",
                    "drain_seconds": 10.0,
                    "poll_seconds": 0.2,
                    **(gateway or {}),
                }
            ),
            neurons=tuple(nodes),
        )
        entries = Catalogue({entry.id: entry for entry in catalogue}, aliases or {})

        async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
            try:
                await gateway_app.run(
                    config, entries, stop=stop_gateway.wait, task_status=task_status
                )
            finally:
                ended.set()

        addresses = await nursery.start(serve)
        limits = httpx.Limits(max_connections=300, max_keepalive_connections=300)
        async with httpx.AsyncClient(base_url=addresses.api, timeout=60, limits=limits) as client:
            yield Stack(addresses.api, addresses.metrics, tuple(urls), client, stop_gateway, ended)
        stop_gateway.set()
        await ended.wait()
        stop_neurons.set()


async def _activated(url: str, token: str | None) -> None:
    """Return when a neuron has loaded what it loads at start."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        with trio.fail_after(60):
            while True:
                activation = (await client.get("/health")).json()["activation"]
                if activation["state"] == "ready":
                    assert not activation["failed"], activation["failed"]
                    return
                await trio.sleep(0.05)
