"""What a node with GPUs and some bad luck would be scraped for: the real collectors, fed.

A machine without a GPU has no utilisation and no temperature, and nothing goes wrong there on
demand. So the panels about them are proven against these expositions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fakes.nvml import FakeGpu, FakeNvml
from prometheus_client import CollectorRegistry

from cortex.config.gateway import NeuronNode
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import GatewayMetrics
from cortex.neuron.metrics import NeuronMetrics, SnapshotCollector
from cortex.neuron.nvml_probe import NvmlProbe
from cortex.neuron.torch_probe import TorchBuild
from cortex.service.metrics import CONTENT_TYPE, render
from cortex.wire import neuron as wire

NODE = "gpu"
MODEL = "big"


def probe() -> NvmlProbe:
    found = NvmlProbe(
        {}, lambda: FakeNvml([FakeGpu("GPU-1")]), lambda: TorchBuild("13.0", ("sm_90",))
    )
    found.inventory()
    return found


def neuron(nvml: NvmlProbe) -> CollectorRegistry:
    """Of a neuron: its engine has failed once, and so have some requests."""
    registry = CollectorRegistry()
    NeuronMetrics(registry).failed(MODEL, "InternalError")
    registry.register(
        SnapshotCollector(
            models=lambda: [wire.Model(MODEL, wire.LOADED)],
            stats=lambda: [(MODEL, None)],
            devices=nvml.health,
            rejected=lambda model: 0,
            revivals=lambda: [(MODEL, 1)],
        )
    )
    return registry


def gateway(nvml: NvmlProbe) -> CollectorRegistry:
    """Of a gateway over that neuron, which refuses requests."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.retry(MODEL, NODE)
    fleet = Fleet([NeuronNode(NODE, "http://127.0.0.1:1")], clock=lambda: 0.0)
    health = wire.Health(1.0, devices=nvml.health())
    fleet.polled(NODE, [wire.Model(MODEL, wire.LOADED)], health, asked_at=0)
    metrics.observe_fleet(fleet.nodes)
    return registry


@contextmanager
def served() -> Iterator[str]:
    """Serves ``/neuron`` and ``/gateway`` for as long as the block lasts; gives host and port."""
    nvml = probe()
    registries = {"/neuron": neuron(nvml), "/gateway": gateway(nvml)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry = registries.get(self.path)
            self.send_response(404 if registry is None else 200)
            self.send_header("content-type", CONTENT_TYPE)
            self.end_headers()
            if registry is not None:
                self.wfile.write(render(registry))

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
