"""A device fault in the real role: what waits is answered, and the same process serves again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cortex.neuron.sources import DEMO_DIRECTORY

BOUND = 60.0  # seconds; a start takes a few


def until(client: httpx.Client, path: str, condition: Callable[[Any], bool]) -> Any:
    """The first answer to ``GET path`` that satisfies *condition*."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        try:
            answer = client.get(path).json()
        except httpx.TransportError:  # it is being replaced at this very moment
            continue
        if condition(answer):
            return answer
        time.sleep(0.05)
    return pytest.fail(f"{path} never came to be as it should")


def chat(client: httpx.Client) -> httpx.Response:
    body = {
        "model": "cortex/demo",
        "messages": [{"role": "user", "content": "What is cortex?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return client.post("/v1/chat/completions", json=body)


def loaded(models: Any) -> bool:
    return [model["status"] for model in models] == ["loaded"]


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO_DIRECTORY / "model.safetensors").exists(), reason="no demo model")
def test_the_role_recovers_from_a_device_fault_under_its_process_id(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    role = subprocess.Popen(
        [sys.executable, "-m", "fakes.faulty_neuron", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    try:
        assert role.stdout is not None
        url = role.stdout.readline().decode().strip()
        assert url.startswith("http://"), "it did not start"
        with httpx.Client(base_url=url, timeout=BOUND) as client:
            until(client, "/models", loaded)
            before = chat(client).json()["choices"]
            uptime = client.get("/health").json()["uptime_secs"]
            (tmp_path / "fault").touch()
            refused = chat(client)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "recovered" in refused.json()["error"]["message"]
            (model,) = client.get("/models").json()
            assert (model["id"], model["status"]) == ("cortex/demo", "recovering")
            until(client, "/health", lambda health: health["uptime_secs"] < uptime)
            (model,) = until(client, "/models", loaded)
            assert model["limit"]["context"] == 512  # loaded as it was asked for
            assert chat(client).json()["choices"] == before
        assert role.poll() is None  # it never ended: the process id is the same
        role.send_signal(signal.SIGTERM)
        assert role.wait(30) == 0
    finally:
        role.kill()
        role.wait()
        if role.stdout is not None:
            role.stdout.close()
