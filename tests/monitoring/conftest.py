"""A `cortex up` for the tests of a module, and a Prometheus that watches it under traffic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from monitoring.live import Cortex, Prometheus, cortex_up, prometheus, traffic


@pytest.fixture(scope="module")
def cortex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    with cortex_up(tmp_path_factory.mktemp("cortex")) as running:
        yield running


@pytest.fixture(scope="module")
def watched(cortex: Cortex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(cortex, tmp_path_factory.mktemp("prometheus")) as running, traffic(cortex):
        yield running
