"""`cortex doctor` beside a gateway and a neuron that run: all is well, with a real token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.stack import DEMO, Stack, stack

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKEN = "s3cret-token"


def written(folder: Path, it: Stack, token: str) -> tuple[Path, Path]:
    """The configuration files of what runs, with *token* for the neuron."""
    gateway, neuron = folder / "cortex.toml", folder / "neuron.toml"
    api, metrics = (url.removeprefix("http://") for url in (it.api, it.metrics))
    gateway.write_text(
        f"[gateway]\nlisten = '{api}'\nmetrics_listen = '{metrics}'\n"
        f"[[neurons]]\nname = 'node-0'\nendpoint = '{it.neurons[0]}'\ntoken = '{token}'\n"
    )
    (folder / "models.toml").write_text(f"[[models]]\nid = '{DEMO}'\n")
    neuron.write_text(
        f"listen = '{it.neurons[0].removeprefix('http://')}'\ntoken = '{token}'\noffline = true\n"
        f"state_directory = '{folder}/state'\n[[default_models]]\nmodel_id = '{DEMO}'\n"
    )
    for path in (gateway, neuron):
        path.chmod(0o640)
    return gateway, neuron


async def doctor(folder: Path, files: tuple[Path, ...]) -> tuple[int, dict[str, Any]]:
    """The command as a process: its exit code, and its checks by role and name."""
    words = [sys.executable, "-m", "cortex", "doctor", "--json"]
    for path in files:
        words += ["--config", str(path)]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STATE_DIRECTORY": str(folder / "state"),
        "CORTEX_CACHE_DIR": str(folder / "kernels"),
        "HF_HUB_CACHE": str(folder / "weights"),
    }
    run = partial(subprocess.run, words, env=environment, capture_output=True, timeout=120)
    done = await trio.to_thread.run_sync(run)
    assert done.stdout, done.stderr.decode()
    checks = json.loads(done.stdout)["checks"]
    return done.returncode, {f"{each['role']} {each['check']}": each for each in checks}


async def test_a_host_that_works_is_well_and_what_is_broken_is_named(tmp_path):
    with trio.fail_after(200):
        neuron = {"token": TOKEN}
        async with stack(tmp_path, neuron=neuron, token=TOKEN) as it:
            files = written(tmp_path, it, TOKEN)
            code, found = await doctor(tmp_path, files)
            bad = {name: each for name, each in found.items() if each["state"] == "failed"}
            assert (code, bad) == (0, {})
            for name in (
                "gateway port api",
                "gateway neuron node-0",
                "gateway clock node-0",
                "gateway version node-0",
                f"gateway model {DEMO}",
                "gateway ready",
                f"gateway token {DEMO}",
                "neuron port api",
                "neuron torch",
                "neuron hub",
                "neuron ready",
                f"neuron token {DEMO}",
            ):
                assert found[name]["state"] == "ok", found[name]
            assert "cortex neuron" in found["neuron port api"]["detail"]
            code, found = await doctor(tmp_path, written(tmp_path, it, "wrong")[:1])
            assert code == 1
            assert "refuses the token" in found["gateway neuron node-0"]["detail"]


async def test_both_are_ready_by_a_token_of_their_own(tmp_path):
    with trio.fail_after(100):
        async with stack(tmp_path) as it:
            for url in (it.api, it.neurons[0]):
                answer = await it.client.get(f"{url}/readyz")
                assert answer.status_code == 200, answer.text
                assert answer.json()["token"]["result"] == "ok"
            metrics = (await it.client.get(f"{it.neurons[0]}/metrics")).text
            probed = (await it.client.get(f"{it.metrics}/metrics")).text
            assert 'cortex_readiness_probes_total{result="ok"} 1.0' in probed
            # The gateway's token was the neuron's proof.
            assert 'neuron_readiness_probes_total{result="ok"}' not in metrics
