"""Imports point down, and each layer keeps away from what it must not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "cortex"
FILES = sorted(ROOT.rglob("*.py"))

# layer -> the layers that it may import besides itself. Everyone may import `errors`.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "wire": set(),
    "service": set(),
    "parallel": set(),
    "config": set(),
    "translate": {"wire"},
    "text": set(),
    "engine": {"parallel"},
    "neuron": {"wire", "service", "parallel", "text", "engine", "config"},
    "gateway": {"wire", "service", "translate", "config"},
    "cli": {"wire", "service", "config", "neuron", "gateway", "__main__"},  # names it to re-execute
    "__main__": {"cli"},
}

NETWORK = {"trio", "anyio", "asyncio", "httpx", "httpcore", "quart", "quart_trio", "hypercorn"}
NETWORK |= {"httptools", "http", "socket", "requests", "aiohttp"}
MODELS = {"torch", "tokenizers", "transformers", "safetensors", "huggingface_hub", "numpy"}
MODELS |= {"jinja2", "pynvml", "llguidance", "gguf"}
# layer -> the packages of others that it may not import, not even in a function.
MAY_NOT_USE = {
    "__init__": NETWORK | MODELS,
    "errors": NETWORK | MODELS,
    "wire": NETWORK | MODELS,
    "service": MODELS,
    "config": NETWORK | MODELS,
    "translate": NETWORK | MODELS,
    "text": NETWORK | {"torch"},
    "engine": NETWORK | {"tokenizers", "jinja2", "transformers", "huggingface_hub", "llguidance"},
    "neuron": {"transformers"},
    "gateway": MODELS,
    "cli": {"torch", "tokenizers", "transformers", "numpy"},
    "__main__": NETWORK | MODELS,
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def exists(name: str) -> bool:
    """Say whether the dotted *name* is a module or package of cortex."""
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted names that *source*, in *package*, imports, made absolute.

    Whatever their place: at the top, in functions, under TYPE_CHECKING, relative, or as a string
    that names a module of ours, which is how an import by name begins.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module or "").split("."))
            yield from (".".join((*filter(None, base), alias.name)) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = node.value.partition(":")[0]
            if re.fullmatch(r"cortex(\.\w+)+", module) and exists(module):
                yield module


def imports_of(path: Path) -> list[str]:
    package = ("cortex", *path.relative_to(ROOT).parent.parts)
    return list(imports(path.read_text(encoding="utf-8"), package))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def modules_of(name: str) -> Iterator[Path]:
    """Yield the files that importing the dotted *name* runs: the packages above it and itself."""
    path = ROOT.parent
    for part in name.split("."):
        path = path / part
        # A package first, as Python does: beside cortex/ there is cortex.py.
        if (path / "__init__.py").is_file():
            yield path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")


def closure(start: list[Path]) -> set[Path]:
    """Return *start* and all files of cortex that they import, whichever way round."""
    seen: set[Path] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            for name in imports_of(path):
                if name.split(".")[0] == "cortex":
                    todo += modules_of(name)
    return seen


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    assert layer in MAY_IMPORT, f"{relative(path)} belongs to no layer: add it to the design first"
    for name in imports_of(path):
        top, *inner = name.split(".")
        if top == "cortex" and inner and inner[0] not in {layer, "errors", "__version__"}:
            assert inner[0] in MAY_IMPORT[layer], f"{layer} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_layer_keeps_away_from_what_it_must_not_know(path: Path) -> None:
    layer = layer_of(path)
    used = {name.split(".")[0] for name in imports_of(path)}
    assert not used & MAY_NOT_USE.get(layer, set())


def test_nothing_that_the_gateway_imports_imports_torch_or_its_like() -> None:
    files = closure([path for path in FILES if layer_of(path) == "gateway"])
    assert ROOT / "wire" / "neuron.py" in files  # the walk does reach other layers
    guilty = {
        f"{relative(path)}: {name}"
        for path in files
        for name in imports_of(path)
        if name.split(".")[0] in MODELS
    }
    assert not guilty
    assert not {layer_of(path) for path in files} & {"neuron", "engine", "text", "parallel"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_are_named_after_what_is_in_them(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not {part.strip("_") for part in parts} & BANNED_NAMES


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name == "__init__.py" and p.parent != ROOT], ids=relative
)
def test_a_package_holds_only_the_docstring_that_says_what_it_owns(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    assert len(module.body) == 1


def test_every_package_has_an_init_file() -> None:
    # Without it the wheel leaves the folder out, and cortex.py would be imported for cortex/.
    assert {p.parent for p in FILES} == {p.parent for p in FILES if p.name == "__init__.py"}


def test_imports_are_found_wherever_they_hide() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def later():
    from . import near
    from ..wire import neuron
    from cortex.service.serve import serve
    load("cortex.gateway.app:run")
"""
    assert set(imports(source, ("cortex", "engine"))) == {
        "typing.TYPE_CHECKING",
        "torch",
        "cortex.engine.near",
        "cortex.wire.neuron",
        "cortex.service.serve.serve",
        "cortex.gateway.app",
    }
