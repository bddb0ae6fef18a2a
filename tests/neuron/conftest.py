"""Neurons that several test files share, because starting one takes a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.demo_neuron import DemoNeuron, demo_neuron


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNeuron]:
    """The demonstration model without a token."""
    with demo_neuron(tmp_path_factory.mktemp("neuron")) as neuron:
        yield neuron


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNeuron]:
    """One that runs one completion, queues two, and wants a token."""
    state = tmp_path_factory.mktemp("small")
    with demo_neuron(state, token="s3cret-token", max_batch=1, max_queue_depth=2) as neuron:
        yield neuron
