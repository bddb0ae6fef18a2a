"""The README and docs/: the files, commands, options, keys and links they name are there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import attrs
import click
import pytest

from cortex.cli.main import COMMANDS, cli
from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.config.catalogue import CatalogueEntry
from cortex.config.environment import COMMAND_VARIABLES, variables_of
from cortex.config.gateway import (
    EvictionSettings,
    GatewayConfig,
    GatewaySettings,
    ImageSettings,
    NeuronNode,
)
from cortex.config.loader import GATEWAY_VARIABLES, NEURON_VARIABLES
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.config.structure import keys_of, structure
from cortex.gateway import events, stages

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

# (file, heading) in configuration.md -> the class whose keys the table below it lists.
TABLES = {
    ("cortex.toml", "Top level"): GatewayConfig,
    ("cortex.toml", "`[gateway]`"): GatewaySettings,
    ("cortex.toml", "`[eviction]`"): EvictionSettings,
    ("cortex.toml", "`[images]`"): ImageSettings,
    ("cortex.toml", "`[auth]`"): AuthSettings,
    ("cortex.toml", "`[usage]`"): UsageSettings,
    ("cortex.toml", "`[[neurons]]`"): NeuronNode,
    ("models.toml", "`[[models]]`"): CatalogueEntry,
    ("neuron.toml", "Settings"): NeuronConfig,
    ("neuron.toml", "`[[default_models]]`"): DefaultModel,
}
TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Path: "path",
}
PLURALS = {"string": "strings", "integer": "integers", "number": "numbers", "table": "tables"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)", re.DOTALL)
VARIABLE = re.compile(r"\b(?:CORTEX|NEURON)_[A-Z][A-Z_]+\b")
RUNS_CORTEX = re.compile(
    r"^(?:python3 cortex\.py|\.venv/bin/python -m cortex|\./cortex\.pyz|cortex) (?=[a-z])(.*)$"
)
CHECKOUT_COMMANDS = {"test"}  # cortex.py's own; the zipapp has none


class Command(NamedTuple):
    name: str
    options: tuple[str, ...]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_of(text: str) -> list[str]:
    """Every line of the fenced blocks and every inline span of a page."""
    fenced = [line for _, body in FENCE.findall(text) for line in body.splitlines()]
    return fenced + INLINE.findall(FENCE.sub("", text))


def tree_of(text: str) -> Iterator[str]:
    """The paths in the README's tree, from its indentation."""
    block = text.partition("## The tree")[2].partition("```\n")[2].partition("\n```")[0]
    above: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above[depth:] = [name.rstrip("/")]
        yield "/".join(above) + ("/" if name.endswith("/") else "")


def commands_of(text: str) -> Iterator[Command]:
    """The commands of cortex in a page, without placeholders such as COMMAND."""
    for line in code_of(text):
        found = RUNS_CORTEX.match(line)
        if found:
            words = shlex.split(found[1])
            options = (word.partition("=")[0] for word in words if word.startswith("-"))
            yield Command(words[0], tuple(options))


def command_table() -> dict[str, set[str]]:
    """The README's table of commands: each with the options that its row names."""
    rows = re.findall(r"^\| `cortex (\w+)[^`]*` \| (.+) \|$", README.read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(--[a-z-]+)`", rest)) for name, rest in rows}


def options_of(name: str) -> set[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name}"
    commands = [command]
    if isinstance(command, click.Group):  # whose subcommands the pages do not tell apart here
        commands += command.commands.values()
    params = [param for each in commands for param in each.params]
    found = {option for p in params for option in (*p.opts, *p.secondary_opts)}
    return found | {"--help", "-h"}


def rows_of(file: str, heading: str) -> dict[str, tuple[str, str]]:
    """The keys in configuration.md below *heading* of *file*: type and default, as written."""
    part = CONFIGURATION.read_text().partition(f"\n## {file}\n")[2]
    part = re.split(r"^## ", part, flags=re.MULTILINE)[0]
    part = part.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", part, re.MULTILINE)
    found = {key: (kind, default) for key, kind, default in rows}
    assert len(found) == len(rows), f"a key of {heading} is listed twice"
    return found


def type_words(kind: Any) -> str:
    """How configuration.md calls the type *kind* of a key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = (a for a in arguments if a is not type(None))
        return type_words(kind)
    if origin is Annotated:
        return "duration"
    if origin is tuple:
        return f"array of {PLURALS[type_words(arguments[0])]}"
    if origin is dict:
        return f"table of {PLURALS[type_words(arguments[1])]}"
    return "table" if attrs.has(kind) else TYPES[kind]


def default_words(field: attrs.Attribute[Any], kind: Any) -> str:
    """How configuration.md writes the default of *field*."""
    if field.default is attrs.NOTHING:
        return "required"
    if field.default is None:
        return "none"
    if "table" in type_words(kind) and field.default != ():
        return "below"
    if isinstance(field.default, Path):
        return f"`{field.default}`"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of Markdown make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def first_cells(page: Path, heading: str) -> set[str]:
    """The inline spans in the first column of the tables below *heading* of *page*."""
    part = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", part, re.MULTILINE)
    return {span for cell in cells for span in INLINE.findall(cell)}


def test_everything_in_the_tree_is_there():
    paths = list(tree_of(README.read_text()))
    assert "cortex/engine/scheduler.py" in paths, "the tree was not understood"
    wrong = [p for p in paths if not (ROOT / p).exists() or (ROOT / p).is_dir() != p.endswith("/")]
    assert wrong == []


def test_the_tree_leaves_out_no_package_and_nothing_at_the_top():
    paths = {path.rstrip("/") for path in tree_of(README.read_text())}
    packages = {name_of(f.parent) for f in (ROOT / "cortex").glob("*/__init__.py")}
    assert packages | {"cortex.py", "cortex", "tests", "packaging", "shiv.spec"} <= paths


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_that_a_page_names_are_there(page):
    starts = ("cortex/", "tests/", "packaging/", "docs/", ".ci/")
    named = set(INLINE.findall(FENCE.sub("", page.read_text())))
    paths = {span for span in named if span.startswith(starts) and " " not in span}
    paths -= {"cortex/demo"}  # a model's id
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors_of(found), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist_with_the_options_it_gives_them(page):
    for command in commands_of(page.read_text()):
        if command.name in CHECKOUT_COMMANDS:
            assert not command.options
            continue
        assert set(command.options) <= options_of(command.name), command


def test_a_command_in_a_page_is_seen():
    text = "say `cortex ps --json`, or\n\n```sh\npython3 cortex.py up --model=x -m y\n```\n"
    assert sorted(commands_of(text)) == [
        Command("ps", ("--json",)),
        Command("up", ("--model", "-m")),
    ]


def test_the_table_of_commands_is_that_of_the_program():
    table = command_table()
    assert list(table) == list(COMMANDS)
    for name, options in table.items():
        assert options <= options_of(name), name


def test_the_exit_codes_are_explained():
    assert re.search(r"0 done; 1 .*2 .*3 ", README.read_text(), re.DOTALL)


@pytest.mark.parametrize(("file", "heading"), TABLES, ids=" ".join)
def test_the_keys_are_those_of_the_program(file, heading):
    cls = TABLES[file, heading]
    kinds = keys_of(cls)
    written = rows_of(file, heading)
    fields = {field.name: field for field in attrs.fields(cls)}
    expected = {
        key: (type_words(kind), default_words(fields[key], kind)) for key, kind in kinds.items()
    }
    assert written == expected


def test_the_examples_of_nodes_are_valid():
    blocks = [body for kind, body in FENCE.findall(CONFIGURATION.read_text()) if kind == "toml"]
    nodes = [structure(tomllib.loads(block), GatewayConfig).neurons for block in blocks]
    assert {node.kind for found in nodes for node in found} == {"openai"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_variables_that_a_page_names_are_read(page):
    known = {*COMMAND_VARIABLES, *GATEWAY_VARIABLES, *NEURON_VARIABLES, "NEURON_PORT"}
    known |= variables_of(GatewayConfig, "CORTEX_").keys()
    known |= variables_of(NeuronConfig, "NEURON_").keys()
    assert set(VARIABLE.findall(page.read_text())) - known == set()


def test_the_variables_that_stand_for_no_key_are_all_explained():
    # Between cortex up and its children; between cortex.py and what it becomes.
    private = {"CORTEX_PARENT_FD", "CORTEX_COMMAND"}
    explained = set(VARIABLE.findall(CONFIGURATION.read_text()))
    assert {*COMMAND_VARIABLES, *GATEWAY_VARIABLES, *NEURON_VARIABLES} - private <= explained


def test_the_gateways_metrics_and_stages_are_all_explained():
    source = "".join(path.read_text() for path in (ROOT / "cortex/gateway").rglob("*.py"))
    families = set(re.findall(r'"(cortex_[a-z_]+)"', source))
    told = first_cells(OPERATIONS, "Metrics")
    metrics = {name.removesuffix("_total") for name in told if name.startswith("cortex_")}
    assert metrics == families
    names = ("RECEIVE", "AUTH", "QUEUE", "ROUTE", "LOAD", "PREFILL", "DECODE", "RELAY")
    assert told - {name for name in told if name.startswith("cortex_")} == {
        getattr(stages, name) for name in names
    }


def test_the_neurons_metrics_are_all_explained():
    names = set()
    for path in (ROOT / "cortex/neuron").rglob("*.py"):
        source = path.read_text()
        names |= set(re.findall(r'"(neuron_[a-z_]+)"', source))
        if path.name == "metrics.py":  # counters whose prefix is added
            names |= {
                f"neuron_{name}" for name in re.findall(r' \("(?!neuron)([a-z_]+)", "', source)
            }
    told = first_cells(OPERATIONS, "A neuron's metrics")
    assert "neuron_preemptions" in names, "the counters were not understood"
    assert {name.removesuffix("_total") for name in told} == {
        name.removesuffix("_total") for name in names
    }


def test_the_kinds_of_events_are_all_explained():
    kinds = set(re.findall(r"``([a-z]+_[a-z]+|pinned|unpinned|reloaded)``", events.__doc__ or ""))
    assert "model_evicted" in kinds, "the list was not understood"
    assert first_cells(OPERATIONS, "Watching") == kinds
