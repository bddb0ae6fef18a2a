"""Neurons and gateways as processes of their own, killed and stopped at bad moments."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from fakes.role_process import RoleProcess
from fakes.stack import stack

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONG = {"max_tokens": 4000, "ignore_eos": True}


def neuron(state: Path, port: int = 0) -> RoleProcess:
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "NEURON_THREADS": "1"}
    command = [sys.executable, "-m", "cortex", "neuron", "--model", "cortex/demo"]
    return RoleProcess([*command, "--port", str(port)], environment, ROOT)


async def test_a_neuron_killed_mid_stream_is_an_error_event_and_no_finish(tmp_path: Path):
    with neuron(tmp_path) as process:
        url = await trio.to_thread.run_sync(process.url_when_listening, 60)
        await trio.to_thread.run_sync(process.wait_for_line, "loaded model=cortex/demo", 60)
        async with stack(tmp_path, neurons=0, endpoints=[url]) as it:
            async with it.stream("hello", **LONG) as payloads:
                await anext(payloads)
                await anext(payloads)
                os.kill(process.pid, signal.SIGKILL)
                with trio.fail_after(10):
                    rest = [payload async for payload in payloads]
            assert "[DONE]" not in rest
            chunks = [json.loads(payload) for payload in rest]
            assert "error" in chunks[-1]
            reasons = [c["choices"][0]["finish_reason"] for c in chunks if c.get("choices")]
            assert not any(reasons)
            with trio.fail_after(20):
                while (await it.client.get("/health")).json()["nodes"]["healthy"]:
                    await trio.sleep(0.05)
            refused = await it.chat("hello", max_tokens=2)
            assert refused.status_code in (502, 503)
            port = int(url.rpartition(":")[2])
            with neuron(tmp_path / "again", port) as successor:
                await trio.to_thread.run_sync(successor.url_when_listening, 60)
                with trio.fail_after(60):
                    while (await it.chat("hello", max_tokens=2)).status_code != 200:
                        await trio.sleep(0.1)


async def test_a_neuron_told_to_stop_drains_its_stream_and_ends_with_0(tmp_path: Path):
    with neuron(tmp_path) as process:
        url = await trio.to_thread.run_sync(process.url_when_listening, 60)
        await trio.to_thread.run_sync(process.wait_for_line, "loaded model=cortex/demo", 60)
        async with (
            stack(tmp_path, neurons=0, endpoints=[url]) as it,
            it.stream("hello", max_tokens=60, ignore_eos=True) as payloads,
        ):
            await anext(payloads)
            os.kill(process.pid, signal.SIGTERM)
            rest = [payload async for payload in payloads]
            assert rest[-1] == "[DONE]"
        assert await trio.to_thread.run_sync(process.wait, 30) == 0
