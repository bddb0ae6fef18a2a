"""A directory of safetensors as a source of weights: one file, or shards named by an index."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType

import torch

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.generation import CONFIG
from cortex.engine.load.json_file import read_object
from cortex.engine.load.safetensors import SafetensorsFile
from cortex.engine.load.scheme import Scheme, read_scheme
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields
from cortex.engine.models.registry import configure
from cortex.engine.quant.types import QuantType
from cortex.errors import CheckpointError, clip

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 10_000


def _shard_names(index: Path) -> tuple[dict[str, str], list[str]]:
    """The index's tensor -> file name map, and the files in order. Names stay in the directory."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name}: weight_map is missing or empty")
    for name in weight_map.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index.name}: a shard's name is not a string")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index.name}: more than {MAX_SHARDS} shards")
    for name in names:
        plain = PurePosixPath(name).name == name and "\\" not in name and "\0" not in name
        if not plain or name in (".", "..") or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index.name}: '{clip(name)}' is not a shard's file name")
    return weight_map, names


def read_directory_config(directory: Path) -> ModelConfig:
    """The checked config.json of *directory*. Raises CheckpointError or UnsupportedModel."""
    fields = Fields(read_object(directory / CONFIG))
    read_scheme(fields)  # refuses what is not supported
    return configure(fields)


class Tensors:
    """`cortex.engine.load.source.Source` out of the files in *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._found: dict[str, tuple[SafetensorsFile, TensorEntry]] = {}
        try:
            if (directory / SINGLE).is_file():
                self._add(directory / SINGLE)
            elif (directory / INDEX).is_file():
                self._add_shards(directory)
            else:
                raise CheckpointError(f"neither {SINGLE} nor {INDEX} is there")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Tensors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def config(self) -> ModelConfig:
        return read_directory_config(self._directory)

    @property
    def scheme(self) -> Scheme | None:
        """How the config says that the weights are quantised."""
        return read_scheme(Fields(read_object(self._directory / CONFIG)))

    @property
    def names(self) -> Set[str]:
        return self._found.keys()

    @property
    def elements(self) -> int:
        return sum(math.prod(entry.shape) for _, entry in self._found.values())

    def find(self, name: str) -> TensorEntry:
        found = self._found.get(name)
        if found is None:
            raise CheckpointError(f"tensor '{clip(name)}' is missing")
        return found[1]

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        return None

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        file, entry = self._found[name]
        file.read_into(entry, target, check)

    def _add_shards(self, directory: Path) -> None:
        weight_map, names = _shard_names(directory / INDEX)
        for name in names:
            self._add(directory / name)
        for tensor, name in weight_map.items():
            found = self._found.get(tensor)
            if found is None or found[0].name != name:
                raise CheckpointError(f"{INDEX}: tensor '{clip(tensor)}' is not in '{clip(name)}'")

    def _add(self, path: Path) -> None:
        file = self._stack.enter_context(SafetensorsFile(path))
        for name, entry in file.entries.items():
            if name in self._found:
                raise CheckpointError(f"tensor '{clip(name)}' is in two shards")
            self._found[name] = (file, entry)
