"""SIGHUP to a gateway as a person runs it: what it reads again, and what it does not drop."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
import trio
from fakes.neuron import FakeNeuron, Reply, chunk
from fakes.role_process import RoleProcess, write_gateway_config

from cortex.wire.sse import FrameReader

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
END = [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]


def gateway(folder: Path, neuron: FakeNeuron) -> RoleProcess:
    path = write_gateway_config(folder)
    with path.open("a") as file:
        file.write(f'[[neurons]]\nname = "a"\nendpoint = "{neuron.url}"\n')
    (folder / "models.toml").write_text('[[models]]\nid = "m"\nvram_mb = 100\n')
    environment = {**os.environ, "STATE_DIRECTORY": str(folder / "state")}
    environment.pop("CORTEX_CONFIG", None)
    command = [sys.executable, "-m", "cortex", "gateway", "--config", str(path)]
    return RoleProcess(command, environment, ROOT)


def body(**fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}


async def test_a_hangup_reloads_both_files_under_a_running_stream(tmp_path: Path):
    neuron, go_on = FakeNeuron("a"), trio.Event()
    frames = [chunk("m", {"content": "Hel"}), go_on, chunk("m", {"content": "lo"}), *END]

    async def line(process: RoleProcess, pattern: str) -> None:
        await trio.to_thread.run_sync(process.wait_for_line, pattern, 30.0)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(neuron.run)
            neuron.scripts[CHAT] = lambda asked: Reply(
                frames=frames, content_type="text/event-stream"
            )
            with gateway(tmp_path, neuron) as process:
                url = await trio.to_thread.run_sync(process.url_when_listening, 30.0)
                async with (
                    httpx.AsyncClient(base_url=url, timeout=20) as client,
                    client.stream("POST", CHAT, json=body(stream=True)) as answer,
                ):
                    raw = answer.aiter_raw()
                    reader, payloads = FrameReader(), []
                    while not any(b"Hel" in payload for payload in payloads):
                        frames_now = reader.feed(await anext(raw))
                        payloads += [frame.data for frame in frames_now if frame.data]

                    models = tmp_path / "models.toml"
                    models.write_text("[[models]]\nid = 7\n")
                    os.kill(process.pid, signal.SIGHUP)
                    await line(process, r"reload refused.*models\.toml: models\[0\]\.id")
                    assert (await client.get("/v1/models/m")).status_code == 200

                    models.write_text('[[models]]\nid = "n"\nvram_mb = 100\n')
                    os.kill(process.pid, signal.SIGHUP)
                    await line(process, r"reloaded.*models_added=n models_removed=m")
                    assert (await client.get("/v1/models/n")).status_code == 200

                    go_on.set()
                    async for data in raw:
                        payloads += [frame.data for frame in reader.feed(data) if frame.data]
                assert payloads[-1] == b"[DONE]"
                deltas = [json.loads(each)["choices"][0]["delta"] for each in payloads[:-1]]
                assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
                assert await trio.to_thread.run_sync(process.terminate, 20.0) == 0
            nursery.cancel_scope.cancel()
