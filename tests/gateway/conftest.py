"""Time for tests with real sockets, and both lanes for tests of whole gateways."""

from __future__ import annotations

import pytest
import trio.testing
from fakes.gateway import LANES, lane_fixture

BOTH_LANES = frozenset(
    {"test_api_anthropic", "test_api_openai", "test_api_responses", "test_app", "test_cors"}
    | {"test_tls"}
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_LANES:
        metafunc.parametrize("lane", LANES, indirect=True)


@pytest.fixture(autouse=True)
def lane(request, monkeypatch) -> str:
    return lane_fixture(request, monkeypatch)


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps when nothing is to be done, but only once sockets were quiet for a moment."""
    return trio.testing.MockClock(autojump_threshold=0.01)
