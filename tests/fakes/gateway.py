"""A whole gateway over fake neurons, in the test's own trio run, on free ports."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from fakes.neuron import FakeNeuron
from prometheus_client.parser import text_string_to_metric_families

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.errors import ConfigError
from cortex.config.gateway import EvictionSettings, GatewayConfig, GatewaySettings
from cortex.gateway import app
from cortex.gateway.reload_plan import Configuration
from cortex.gateway.upstream import Call, PooledUpstream, UpstreamResponse
from cortex.wire.sse import FrameReader

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
LANES = ("fast", "hypercorn")
FAST_LANE = True  # where a test does not say; the `lane` fixtures try both


def chat(model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


def message(model: str = "m", **fields: Any) -> dict[str, Any]:
    return {**chat(model), "max_tokens": 64, **fields}


@attrs.define(eq=False)
class Reading:
    """An answer that is being read."""

    response: UpstreamResponse
    received: bytes = b""

    @property
    def status(self) -> int:
        return self.response.status

    async def some(self) -> bytes:
        """The next bytes; empty at the end."""
        data = await self.response.receive()
        self.received += data
        return data

    async def until(self, text: bytes) -> None:
        while text not in self.received:
            assert await self.some(), f"the answer ended without {text!r}: {self.received!r}"

    async def rest(self) -> bytes:
        """Everything, to the end."""
        while await self.some():
            pass
        return self.received


def payloads(stream: bytes) -> list[Any]:
    """The ``data:`` of every event, parsed where it is JSON."""
    reader = FrameReader()
    found = [frame.data.decode() for frame in reader.feed(stream) if frame.data is not None]
    assert not reader.unfinished
    return [text if text == "[DONE]" else json.loads(text) for text in found]


def text_of(stream: bytes) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in payloads(stream)
        if chunk != "[DONE]"
        for choice in chunk.get("choices", ())
    )


@attrs.define(eq=False)
class FleetEvents:
    """The events of ``/fleet/events``, one at a time."""

    reading: Reading
    last_id: str = ""
    _frames: FrameReader = attrs.field(factory=FrameReader)
    _ready: deque[Any] = attrs.field(factory=deque)

    async def next(self) -> dict[str, Any]:
        while not self._ready:
            data = await self.reading.some()
            assert data, "the events have ended"
            self._ready += (frame for frame in self._frames.feed(data) if frame.data is not None)
        frame = self._ready.popleft()
        for line in frame.raw.decode().splitlines():
            if line.startswith("id: "):
                self.last_id = line.removeprefix("id: ")
        event: dict[str, Any] = json.loads(frame.data)
        assert frame.event == event["kind"]
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of *kind*; those before it are dropped."""
        while (event := await self.next())["kind"] != kind:
            pass
        return event


@attrs.define(eq=False)
class Files:
    """What the gateway reads when it is told to reload; an ``error`` comes instead."""

    config: GatewayConfig
    catalogue: Catalogue
    error: ConfigError | None = None
    _hangup: trio.Event = attrs.field(factory=trio.Event)

    def read(self) -> Configuration:
        if self.error is not None:
            raise self.error
        return Configuration(self.config, self.catalogue)

    def settings(self, **changed: Any) -> None:
        """Change keys of ``[gateway]``."""
        settings = attrs.evolve(self.config.gateway, **changed)
        self.config = attrs.evolve(self.config, gateway=settings)

    def hang_up(self) -> None:
        self._hangup.set()

    async def hangup(self) -> None:
        await self._hangup.wait()
        self._hangup = trio.Event()


@attrs.define(eq=False)
class RunningGateway:
    api: str
    metrics: str
    client: httpx.AsyncClient
    streams: PooledUpstream
    stop: trio.Event
    ended: trio.Event
    files: Files

    @asynccontextmanager
    async def stream(
        self, body: Any, path: str = CHAT, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Reading]:
        """A request whose answer is read bit by bit; leaving the block early hangs up."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.streams.call(Call(self.api, path, data, headers or {})) as response:
            yield Reading(response)

    @asynccontextmanager
    async def events(self, last_id: str | None = None) -> AsyncIterator[FleetEvents]:
        headers = {} if last_id is None else {"last-event-id": last_id}
        call = Call(self.api, "/fleet/events", b"", headers, method="GET")
        async with self.streams.call(call) as response:
            assert response.status == 200
            yield FleetEvents(Reading(response))

    async def streamed(self, body: Any, path: str = CHAT) -> bytes:
        async with self.stream(body, path) as reading:
            return await reading.rest()

    async def raw(self, data: bytes) -> bytes:
        """What the server writes after *data*, until it closes."""
        host, port = self.api.removeprefix("http://").split(":")
        received = b""
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(data)
            while chunk := await stream.receive_some():
                received += chunk
        return received

    async def raw_start(self, data: bytes) -> bytes:
        """The first thing the server writes after *data*, whether it closes or not."""
        host, port = self.api.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(data)
            return bytes(await stream.receive_some())

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = (await self.client.get(f"{self.metrics}/metrics")).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of *name* that have *labels*."""
        wanted = set(labels.items())
        found = await self.samples()
        return sum(value for (key, own), value in found.items() if key == name and wanted <= own)

    async def until(self, count: float, name: str, within: float = 1.0, **labels: str) -> None:
        """Wait until `total` is *count*; TooSlowError when that takes longer than *within*."""
        with trio.fail_after(within):
            while await self.total(name, **labels) != count:
                await trio.sleep(0.01)


def lane_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a `lane` fixture does: the lane of its parameter for every `gateway` of the test."""
    lane: str = getattr(request, "param", LANES[0])
    monkeypatch.setattr(sys.modules[__name__], "FAST_LANE", lane == LANES[0])
    return lane


@asynccontextmanager
async def gateway(
    *neurons: FakeNeuron,
    models: tuple[CatalogueEntry, ...] = (),
    aliases: dict[str, str] | None = None,
    fast_lane: bool | None = None,
    auth: AuthSettings | None = None,
    usage: UsageSettings | None = None,
    state_directory: Path | None = None,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    async with trio.open_nursery() as nursery:
        for neuron in neurons:
            if not neuron.port:
                await nursery.start(neuron.run)
        nodes = [neuron.configured() for neuron in neurons]
        listen = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
        pace = {"drain_seconds": 1.0, "poll_seconds": 0.1}
        config = GatewayConfig(
            GatewaySettings(**{**listen, **pace, **settings}),
            EvictionSettings(keep_alive=-1),
            tuple(nodes),
            auth=auth or AuthSettings(),
            usage=usage or UsageSettings(),
        )
        stop, ended = trio.Event(), trio.Event()
        files = Files(config, Catalogue(models, aliases or {}))

        async def serve(*, task_status: trio.TaskStatus[app.GatewayAddresses]) -> None:
            try:
                await app.run(
                    config,
                    files.catalogue,
                    stop=stop.wait,
                    state_directory=state_directory,
                    read_again=files.read,
                    hangup=files.hangup,
                    fast_lane=FAST_LANE if fast_lane is None else fast_lane,
                    task_status=task_status,
                )
            finally:
                ended.set()

        addresses = await nursery.start(serve)
        async with (
            httpx.AsyncClient(base_url=addresses.api, timeout=10, verify=False) as client,
            PooledUpstream(10.0) as streams,
        ):
            yield RunningGateway(
                addresses.api, addresses.metrics, client, streams, stop, ended, files
            )
        stop.set()
        with trio.fail_after(10):
            await ended.wait()
        nursery.cancel_scope.cancel()
