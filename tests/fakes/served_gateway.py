"""A gateway in a thread of its own, over fake neurons or over ones that run elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import httpx
import trio
from fakes.demo_neuron import chunks_of, eventually
from fakes.neuron import FakeNeuron

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import (
    EvictionSettings,
    GatewayConfig,
    GatewaySettings,
    ImageSettings,
    NeuronNode,
)
from cortex.gateway import app


@attrs.define(eq=False)
class ServedGateway:
    """``client`` speaks to the API; ``neuron`` is the first fake one. ``soon`` calls a function in
    the thread of the gateway and its fake neurons."""

    url: str
    metrics: str
    client: httpx.Client
    neurons: tuple[FakeNeuron, ...]
    soon: Callable[[Callable[[], object]], None]

    @property
    def neuron(self) -> FakeNeuron:
        return self.neurons[0]

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        data = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self.client.post(path, **data, **options)

    def stream(self, path: str, body: dict[str, Any], **options: Any) -> list[Any]:
        """The data of a stream's events, ``[DONE]`` as that string."""
        return list(chunks_of(iter(self.raw_stream(path, body, **options).text.split("\n"))))

    def raw_stream(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        """The whole answer to *body* with ``stream``; it must be a 200."""
        response = self.client.post(path, json={**body, "stream": True}, **options)
        assert response.status_code == 200, response.text
        return response


@contextmanager
def served_gateway(
    *neurons: FakeNeuron,
    endpoints: tuple[str, ...] = (),
    models: tuple[CatalogueEntry, ...] = (),
    aliases: dict[str, str] | None = None,
    run: dict[str, Any] | None = None,
    images: ImageSettings | None = None,
    **settings: Any,
) -> Iterator[ServedGateway]:
    """*endpoints* are neurons that run already; *run* are further options of `app.run`."""
    listen = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    pace = {"drain_seconds": 1.0, "poll_seconds": 0.1}
    ready = threading.Event()
    started: list[tuple[app.GatewayAddresses, trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for neuron in neurons:
                await nursery.start(neuron.run)
            urls = [*(neuron.url for neuron in neurons), *endpoints]
            config = GatewayConfig(
                gateway=GatewaySettings(**{**listen, **pace, **settings}),
                eviction=EvictionSettings(keep_alive=-1),
                neurons=tuple(NeuronNode(f"node-{n}", url) for n, url in enumerate(urls)),
                images=images or ImageSettings(),
            )
            catalogue = Catalogue({entry.id: entry for entry in models}, aliases or {})
            serve = partial(app.run, config, catalogue, stop=trio.sleep_forever, **(run or {}))
            addresses = await nursery.start(serve)
            started.append((addresses, trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,), name="gateway")
    thread.start()
    assert ready.wait(30)
    addresses, token, scope = started[0]
    url = addresses.api
    with httpx.Client(base_url=url, timeout=30) as client:
        try:
            eventually(
                lambda: all(
                    node["healthy"] and node["models"]
                    for node in client.get("/fleet").json()["nodes"]
                ),
                30,
                "the neurons are known",
            )
            yield ServedGateway(url, addresses.metrics, client, neurons, token.run_sync_soon)
        finally:
            token.run_sync_soon(scope.cancel)
            thread.join(30)
            assert not thread.is_alive()
