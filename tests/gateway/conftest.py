"""Time for tests with real sockets."""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps when nothing is to be done, but only once sockets were quiet for a moment."""
    return trio.testing.MockClock(autojump_threshold=0.01)
