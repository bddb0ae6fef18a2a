"""The shipped examples: they parse, and they document every key there is."""

import re
from pathlib import Path

import attrs
import pytest

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.config.catalogue import CatalogueEntry, CatalogueFile
from cortex.config.gateway import (
    EvictionSettings,
    GatewayConfig,
    GatewaySettings,
    ImageSettings,
    NeuronNode,
)
from cortex.config.loader import load_catalogue, load_gateway, load_neuron, read_catalogue
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.config.structure import keys_of

EXAMPLES = Path(__file__).parents[2] / "packaging" / "config"
READERS = {
    "cortex.toml": lambda path: load_gateway(path, {}),
    "models.toml": read_catalogue,
    "neuron.toml": lambda path: load_neuron(path, {}),
}
CLASSES = {
    "cortex.toml": (
        GatewayConfig,
        GatewaySettings,
        EvictionSettings,
        ImageSettings,
        AuthSettings,
        UsageSettings,
        NeuronNode,
    ),
    "models.toml": (CatalogueFile, CatalogueEntry),
    "neuron.toml": (NeuronConfig, DefaultModel),
}
KEY_LINE = re.compile(r"^(?:# )?([a-z_]+) = ")
TABLE_LINE = re.compile(r"^\[+([a-z_]+)\]+")


def table_around(lines, number):
    """The lines of the table that is commented out as a whole around *number*, else that line."""
    first = number
    while first and re.match(r"# (\[|[a-z_]+ = )", lines[first - 1]):
        first -= 1
    if not lines[first].startswith("# ["):
        return [number]
    last = number
    while last + 1 < len(lines) and KEY_LINE.match(lines[last + 1]):
        last += 1
    return range(first, last + 1)


def lines_of(name):
    return (EXAMPLES / name).read_text().splitlines()


def commented_keys():
    return [
        pytest.param(name, number, id=f"{name}:{KEY_LINE.match(line)[1]}")
        for name in READERS
        for number, line in enumerate(lines_of(name))
        if line.startswith("# ") and KEY_LINE.match(line)
    ]


def test_the_examples_are_valid_together():
    config = load_gateway(EXAMPLES / "cortex.toml", {})
    catalogue = load_catalogue(config)
    assert config.warnings == catalogue.warnings == ()
    assert "cortex/demo" in catalogue.models
    neuron = load_neuron(EXAMPLES / "neuron.toml", {})
    assert neuron.warnings == ()
    assert [model.model_id for model in neuron.default_models] == ["cortex/demo"]


def test_whoever_copies_an_example_gets_what_the_program_does_by_itself():
    config, default = load_gateway(EXAMPLES / "cortex.toml", {}), GatewayConfig()
    assert config.gateway == default.gateway
    assert config.eviction == default.eviction
    assert config.neurons == default.neurons
    assert (config.auth, config.usage) == (default.auth, default.usage)
    neuron = load_neuron(EXAMPLES / "neuron.toml", {"HOME": "/h"})
    plain = attrs.evolve(neuron, source=None, default_models=())
    assert plain == load_neuron(None, {"HOME": "/h"})


@pytest.mark.parametrize("name", READERS)
def test_an_example_documents_every_key(name):
    written = {m[1] for line in lines_of(name) if (m := KEY_LINE.match(line))}
    written |= {m[1] for line in lines_of(name) if (m := TABLE_LINE.match(line))}
    known = {key for cls in CLASSES[name] for key in keys_of(cls)}
    if name == "neuron.toml":
        known.add("port")
    assert written == known


@pytest.mark.parametrize(("name", "number"), commented_keys())
def test_what_an_example_comments_out_is_valid(name, number, tmp_path):
    for other in READERS:
        (tmp_path / other).write_text((EXAMPLES / other).read_text())
    (tmp_path / "neuron.token").write_text("token")
    lines = lines_of(name)
    pair = [n for n, line in enumerate(lines) if line.startswith("# tls_")]
    for each in {*table_around(lines, number), *(pair if number in pair else ())}:
        lines[each] = lines[each].removeprefix("# ")
    (tmp_path / name).write_text("\n".join(lines))
    READERS[name](tmp_path / name)
