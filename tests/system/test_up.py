"""`cortex up` as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fakes.role_process import RoleProcess

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def up(state: Path) -> RoleProcess:
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "NEURON_THREADS": "1"}
    ports = ["--port", "0", "--neuron-port", "0", "--metrics-port", "0"]
    return RoleProcess([sys.executable, "-m", "cortex", "up", *ports], environment, ROOT)


def children(pid: int) -> list[int]:
    """The processes that any thread of *pid* has started."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(child) for found in lists for child in found)


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_serves_and_sigterm_ends_both_children_with_0(tmp_path: Path):
    with up(tmp_path) as process:
        url = process.wait_for_line(r"OpenAI\s+(http://\S+)", 120).group(1)
        with httpx.Client(base_url=url, timeout=60) as client:
            body = {"model": "cortex/demo", "messages": [{"role": "user", "content": "Hello"}]}
            answer = client.post("/chat/completions", json=body)
            assert answer.json()["choices"][0]["message"]["content"]
        both = children(process.pid)
        assert len(both) == 2
        assert process.terminate(60) == 0
        assert all(gone(child) for child in both)


def test_a_child_that_dies_ends_the_whole_with_an_error(tmp_path: Path):
    with up(tmp_path) as process:
        process.wait_for_line(r"OpenAI\s+(http://\S+)", 120)
        both = children(process.pid)
        os.kill(both[0], signal.SIGKILL)
        assert process.wait(60) != 0
        assert all(gone(child) for child in both)


def test_a_taken_port_is_named(tmp_path: Path):
    with up(tmp_path) as process:
        url = process.wait_for_line(r"OpenAI\s+(http://\S+)/v1", 120).group(1)
        port = url.rpartition(":")[2]
        command = [sys.executable, "-m", "cortex", "up", "--port", port]
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert again.returncode == 2
        assert port in again.stderr
        assert process.terminate(60) == 0
