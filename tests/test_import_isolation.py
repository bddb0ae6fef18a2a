"""The gateway needs nothing that only a neuron needs: it runs where that cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.role_process import RoleProcess, get_json, write_gateway_config

ROOT = Path(__file__).resolve().parent.parent

REFUSE = """
import sys

# Not jinja2, which Quart itself imports.
REFUSED = {"torch", "tokenizers", "transformers", "safetensors", "huggingface_hub", "numpy",
           "pynvml", "llguidance"}


class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refusal())
"""
LOOK = """
from cortex.cli.doctor import roles
from cortex.neuron import host_look

host_look.tell()
"""
RUN_MAIN = """
from cortex.cli.main import main
sys.argv = ["cortex", *sys.argv[1:]]
sys.exit(main())
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", REFUSE + code, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_the_refusal_refuses() -> None:
    done = finished(python("import torch"))
    assert "No module named 'torch'" in done.stderr


@pytest.mark.slow
def test_the_gateway_is_imported_without_what_a_neuron_needs() -> None:
    done = finished(python('import cortex.gateway.app\nprint("whole")'))
    assert (done.stdout.strip(), done.stderr) == ("whole", "")


@pytest.mark.slow
def test_the_gateway_command_explains_itself_without_what_a_neuron_needs() -> None:
    done = finished(python(RUN_MAIN, "gateway", "--help"))
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


@pytest.mark.slow
def test_the_gateway_serves_without_what_a_neuron_needs(tmp_path: Path) -> None:
    config = write_gateway_config(tmp_path)
    command = python(RUN_MAIN, "gateway", "--config", str(config))
    ours = {**environment(), "STATE_DIRECTORY": str(tmp_path)}
    with RoleProcess(command, ours, tmp_path) as gateway:
        url = gateway.url_when_listening(seconds=30)
        assert get_json(f"{url}/health")["status"]
        assert gateway.terminate(seconds=20) == 0


def test_doctor_looks_at_a_neurons_host_without_any_of_it() -> None:
    done = subprocess.run(python(LOOK), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    nvml, torch = done.stdout.splitlines()
    assert '"expected": true' in nvml
    assert torch == '{"torch": null}'
