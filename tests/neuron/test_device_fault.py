"""A device fault in the real role: what waits is answered, and the same process serves again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.faulty_neuron import PLACES, order

from cortex.neuron.restart import GAVE_UP
from cortex.neuron.sources import DEMO_DIRECTORY
from cortex.neuron.sources import DEMO_ID as MODEL

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


@contextmanager
def faulty(state: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """The role as a process, its model loaded, and a client of it."""
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    role = subprocess.Popen(
        [sys.executable, "-m", "fakes.faulty_neuron", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    try:
        assert role.stdout is not None
        url = role.stdout.readline().decode().strip()
        assert url.startswith("http://"), "it did not start"
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=url, timeout=BOUND, limits=limits) as client:
            until(client, "/models", loaded)
            yield role, client
    finally:
        role.kill()
        role.wait()
        if role.stdout is not None:
            role.stdout.close()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO_DIRECTORY / "model.safetensors").exists(), reason="no demo model"),
]


def test_the_role_recovers_from_a_device_fault_under_its_process_id(tmp_path: Path) -> None:
    with faulty(tmp_path) as (role, client):
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
        assert "neuron_recoveries_total 1.0" in client.get("/metrics").text
        assert role.poll() is None  # it never ended: the process id is the same
        role.send_signal(signal.SIGTERM)
        assert role.wait(30) == 0


def ends(client: httpx.Client, stream: bool) -> str:
    """How a long request ended: as it should (``done``), or with a truthful ``error``."""
    body = {"prompt": [9], "max_tokens": 400, "ignore_eos": True, "stream": stream}
    with client.stream("POST", "/v1/completions", json={"model": MODEL, **body}) as answer:
        if answer.status_code != 200:
            error = json.loads(answer.read())["error"]
            assert answer.status_code == 503, error
            assert int(answer.headers["retry-after"]) >= 1
            return "error"
        if not stream:
            assert json.loads(answer.read())["usage"]["completion_tokens"] == 400
            return "done"
        told = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    if told[-1] == "[DONE]":
        return "done"
    assert json.loads(told[-1])["error"]["code"] == "service_unavailable"
    chunks = [json.loads(each) for each in told[:-1]]
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
    return "error"


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_fault_under_load_leaves_no_request_without_an_answer(tmp_path: Path, place: str) -> None:
    """Two of them run and the others wait, streams or not, when some job of the device faults."""
    with faulty(tmp_path) as (role, client), ThreadPoolExecutor(12) as threads:
        uptime = client.get("/health").json()["uptime_secs"]
        if place == "close":
            other = client.post("/models/load", json={"model_id": "other", "source": "demo"})
            assert other.status_code == 200
        asked = [threads.submit(ends, client, number % 2 == 0) for number in range(8)]
        until(client, "/health", lambda health: _busy(health["models"]) >= 8)
        order(tmp_path, place)
        bodies = {"model_id": "other", "source": "demo"}
        if place == "shard":
            refused = client.post("/models/load", json=bodies)
            assert refused.status_code == 503
        elif place == "close":
            client.post("/models/unload", json=bodies)
        elif place == "abort":
            _leave(client)
        elif place == "add":
            assert ends(client, stream=False) == "error"
        outcomes = [one.result(BOUND) for one in asked]
        assert "error" in outcomes
        assert set(outcomes) <= {"done", "error"}
        until(client, "/health", lambda health: health["uptime_secs"] < uptime)
        models = until(client, "/models", lambda models: models and _all_loaded(models))
        there = {model["id"] for model in models}
        assert there == ({MODEL, "other"} if place == "shard" else {MODEL})
        assert ends(client, stream=True) == ends(client, stream=False) == "done"
        assert role.poll() is None


def test_a_process_told_to_stop_while_it_recovers_ends(tmp_path: Path) -> None:
    with faulty(tmp_path) as (role, client):
        (tmp_path / "fault").touch()
        assert chat(client).status_code == 503
        role.send_signal(signal.SIGTERM)
        # Drained, given up for its supervisor, or, between two images of itself, killed.
        assert role.wait(30) in (0, GAVE_UP, -signal.SIGTERM)


def _busy(models: Any) -> int:
    return sum(model["in_flight"] + model["queue_depth"] for model in models)


def _all_loaded(models: Any) -> bool:
    return {model["status"] for model in models} == {"loaded"}


def _leave(client: httpx.Client) -> None:
    """Ask, and go away when the answer has begun."""
    body = {"model": MODEL, "prompt": [9], "max_tokens": 400, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body):
        pass
