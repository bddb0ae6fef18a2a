"""The example set-ups: each folder's files are valid, agree with one another, and start."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from fakes.role_process import RoleProcess, get_json

from cortex.cli.main import cli
from cortex.config.gateway import CORTEX, GatewayConfig
from cortex.config.loader import load_catalogue, load_gateway, load_neuron
from cortex.config.neuron import NeuronConfig
from cortex.config.values import is_loopback, split_listen

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "packaging" / "config" / "examples"
NAMES = ("foreign-engines", "mixed-fleet", "one-box", "two-boxes")


def token_files(path: Path) -> set[str]:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    tables = [table, *table.get("neurons", ())]
    return {each["token_file"] for each in tables if "token_file" in each}


@pytest.fixture(params=NAMES)
def folder(request, tmp_path):
    """A copy of an example with the token files that whoever uses it makes."""
    copy = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, copy)
    for path in copy.glob("*.toml"):
        for name in token_files(path):
            (copy / name).write_text(f"the-token-of-{name}\n", encoding="utf-8")
    return copy


def gateway_of(folder: Path) -> GatewayConfig:
    return load_gateway(folder / "cortex.toml", {})


def neurons_of(folder: Path) -> dict[str, NeuronConfig]:
    """By the name of their node: neuron-NAME.toml, and neuron.toml of the one called local."""
    return {
        path.stem.partition("-")[2] or "local": load_neuron(path, {})
        for path in folder.glob("neuron*.toml")
    }


def test_these_are_all_the_examples():
    assert tuple(sorted(path.name for path in EXAMPLES.iterdir())) == NAMES


def test_nothing_in_it_is_warned_about(folder):
    config = gateway_of(folder)
    catalogue = load_catalogue(config)
    assert catalogue.models
    warnings = (*config.warnings, *catalogue.warnings)
    assert warnings == ()  # also: every pinned_on names a node
    assert [neuron.warnings for neuron in neurons_of(folder).values() if neuron.warnings] == []


def test_cortex_check_finds_nothing_wrong(folder):
    done = CliRunner().invoke(cli, ["check", *map(str, sorted(folder.glob("*.toml")))])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count(": valid ") == len(list(folder.glob("*.toml")))


def test_every_neuron_is_a_node_with_its_port_and_token(folder):
    neurons = neurons_of(folder)
    nodes = {node.name: node for node in gateway_of(folder).neurons if node.kind == CORTEX}
    assert nodes.keys() == neurons.keys()
    for name, neuron in neurons.items():
        endpoint = urlsplit(nodes[name].endpoint)
        assert split_listen(neuron.listen) == (endpoint.hostname, endpoint.port)
        assert neuron.token == nodes[name].token
        assert neuron.token is not None or is_loopback(neuron.listen)


def test_no_secret_stands_in_a_file(folder):
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.toml")]
    tables += [node for table in tables for node in table.get("neurons", ())]
    assert [table for table in tables if "token" in table] == []


def test_what_a_neuron_loads_at_start_is_what_the_catalogue_says(folder):
    catalogue = load_catalogue(gateway_of(folder))
    for name, neuron in neurons_of(folder).items():
        for model in neuron.default_models:
            entry = catalogue.models[model.model_id]
            assert (entry.source, entry.quant, entry.context) == (
                model.source,
                model.quant,
                model.context,
            )
            assert not entry.pinned_on or name in entry.pinned_on


def test_claude_code_finds_a_model_for_each_size(folder):
    aliases = load_catalogue(gateway_of(folder)).aliases  # which resolve, or loading had failed
    for size in ("opus", "sonnet", "haiku"):
        assert any(alias.startswith(f"claude-{size}-") for alias in aliases)


def test_the_smallest_one_starts(tmp_path):
    example = EXAMPLES / "one-box" / "cortex.toml"
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(tmp_path),
        "STATE_DIRECTORY": str(tmp_path),
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__METRICS_LISTEN": "127.0.0.1:0",
    }
    command = [sys.executable, "-m", "cortex", "gateway", "--config", str(example)]
    with RoleProcess(command, environment, ROOT) as gateway:
        url = gateway.url_when_listening(60)
        models = {model["id"] for model in get_json(f"{url}/v1/models")["data"]}
        assert {"qwen3-14b", "qwen2.5-coder-14b", "chat"} <= models
        assert gateway.terminate(30) == 0
