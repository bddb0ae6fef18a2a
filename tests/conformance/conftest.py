"""The servers under test: one gateway over a scripted neuron, one over a real small model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conformance.checks import Server
from fakes.demo_neuron import DEMO, demo_neuron
from fakes.neuron import FakeNeuron
from fakes.served_gateway import served_gateway

from cortex.config.catalogue import CatalogueEntry

# Servers live as long as one file of tests: elsewhere hypothesis would take it amiss that their
# threads draw random numbers.

# The ways to serve the API port, each of which every case has to hold for.
LANES: dict[str, dict[str, Any]] = {
    "fast": {"fast_lane": True},
    "hypercorn": {"fast_lane": False},
}


@pytest.fixture(scope="module", params=LANES.values(), ids=LANES.keys())
def lane(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of `cortex.gateway.app.run`."""
    return request.param


@pytest.fixture(scope="module")
def scripted_server(lane: dict[str, Any]) -> Iterator[Server]:
    """Names: ``m`` and ``org/m`` on a fake neuron, ``gpt-4`` and ``claude-4`` for ``m``."""
    neuron = FakeNeuron("a")
    neuron.hold("m")
    neuron.hold("org/m")
    aliases = {"gpt-4": "m", "claude-4": "m"}
    entry = CatalogueEntry("m", source="org/m", vram_mb=1000)
    with served_gateway(
        neuron, models=(entry,), aliases=aliases, run=lane, max_body_mb=1, stall_seconds=10.0
    ) as served:
        yield Server(served, "m")


@pytest.fixture
def scripted(scripted_server: Server) -> Iterator[Server]:
    """The gateway over a fake neuron, whose scripts are this test's own."""
    neuron = scripted_server.gateway.neuron
    neuron.scripts.clear()
    neuron.requests.clear()
    yield scripted_server
    neuron.scripts.clear()


@pytest.fixture(scope="module")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with demo_neuron(tmp_path_factory.mktemp("neuron")) as neuron:
        yield neuron.url


@pytest.fixture(scope="module")
def real(lane: dict[str, Any], demo_url: str) -> Iterator[Server]:
    """The gateway over the real engine with the demonstration model, also called ``alias``."""
    entry = CatalogueEntry(DEMO)
    with served_gateway(
        endpoints=(demo_url,), models=(entry,), aliases={"alias": DEMO}, run=lane
    ) as served:
        yield Server(served, DEMO)
