"""The gateways that are measured: how each is started on the upstream, with all it has on."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import attrs
from process import Process, free_port
from upstream import MODEL

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 120
OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"


@attrs.frozen(eq=False)
class Gateway:
    name: str
    url: str
    version: str
    process: Process | None = None  # None: the upstream itself, asked directly
    rust: bool = False
    translates: bool = False  # whether it serves Anthropic's dialect over this upstream
    headers: dict[str, str] = attrs.field(factory=dict)
    start_seconds: float = 0.0


def direct(url: str) -> Gateway:
    return Gateway("upstream alone", url, "")


def cortex(upstream: str, folder: Path, core: int, *, auth: bool) -> Gateway:
    """This checkout's gateway; metrics, routing and usage are always on, *auth* adds a key."""
    port = free_port()
    config = folder / "cortex.toml"
    config.write_text(
        f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:{free_port()}"\n'
        f'[[neurons]]\nname = "mock"\nendpoint = "{upstream}"\n'
    )
    env = {"PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(folder / "state")}
    headers = {"authorization": f"Bearer {_new_key(env)}"} if auth else {}
    command = [sys.executable, "-m", "cortex", "gateway", "--config", str(config)]
    process = Process(command, core, folder / "cortex.log", env)
    url = f"http://127.0.0.1:{port}"
    seconds = process.wait_ready(f"{url}/health", START_SECONDS)
    described = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    version = described.stdout.strip()
    return Gateway(
        "cortex", url, version, process, translates=True, headers=headers, start_seconds=seconds
    )


def _new_key(env: dict[str, str]) -> str:
    Path(env["STATE_DIRECTORY"]).mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        [sys.executable, "-m", "cortex", "keys", "add", "bench"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    found = re.search(r"ctx-\S+", made.stdout)
    if found is None:
        raise RuntimeError(f"no key in what `cortex keys add` said: {made.stdout!r}")
    return found[0]


def litellm(upstream: str, folder: Path, core: int, python: str) -> Gateway:
    """LiteLLM's proxy: one worker, no database, and a master key, which it asks for."""
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"
    settings = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"hosted_vllm/{MODEL}",
                    "api_base": f"{upstream}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": key},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [str(Path(python).with_name("litellm")), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = Process(command, core, folder / "litellm.log", env)
    url = f"http://127.0.0.1:{port}"
    seconds = process.wait_ready(f"{url}/health/liveliness", START_SECONDS)
    return Gateway(
        "LiteLLM",
        url,
        _version(python, "litellm"),
        process,
        translates=True,
        headers={"authorization": f"Bearer {key}"},
        start_seconds=seconds,
    )


# A router's name, its package, and the command that starts it.
ROUTERS = {
    "smg": ("smg", ["-m", "smg.launch_router"]),
    "vllm-router": ("vllm-router", ["-m", "vllm_router.launch_router"]),
    "sglang-router": ("sglang-router", ["-m", "sglang_router.launch_router"]),
}


def router(name: str, upstream: str, folder: Path, core: int, python: str) -> Gateway:
    """A router in Rust, in front of the one worker."""
    package, start = ROUTERS[name]
    port, metrics = free_port(), free_port()
    command = [python, *start, "--worker-urls", upstream, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-port", str(metrics), "--prometheus-host", "127.0.0.1"]
    process = Process(command, core, folder / f"{name}.log", {})
    url = f"http://127.0.0.1:{port}"
    seconds = process.wait_ready(f"{url}/health", START_SECONDS)
    version = _version(python, package)
    return Gateway(name, url, version, process, rust=True, start_seconds=seconds)


def _version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
