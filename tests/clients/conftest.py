"""One real `cortex up` for all client tests: two processes and the demonstration model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.role_process import RoleProcess

START_SECONDS = 120


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a gateway that serves cortex/demo."""
    state = tmp_path_factory.mktemp("state")
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "NEURON_THREADS": "1"}
    command = [
        *(sys.executable, "-m", "cortex", "up"),
        *("--port", "0", "--neuron-port", "0", "--metrics-port", "0"),
    ]
    root = Path(__file__).parents[2]
    with RoleProcess(command, environment, root) as process:
        yield process.wait_for_line(r"Anthropic\s+(http://\S+)", START_SECONDS).group(1)
        assert process.terminate(60) == 0
