"""A GGUF file, or all parts of one, as a source of a decoder's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import attrs
import torch

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.gguf_config import configure, family_of
from cortex.engine.load.gguf_file import GgufFile
from cortex.engine.load.gguf_names import ROPE_FACTORS, decoder_name, projection
from cortex.engine.load.gguf_parts import part_names
from cortex.engine.load.source import bytes_of
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields
from cortex.engine.quant.types import QuantType
from cortex.errors import CheckpointError, clip


class GgufSource:
    """`cortex.engine.load.source.Source` out of the file at *path*, and the parts beside it."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        self._entries: dict[str, TensorEntry] = {}
        self._files: dict[str, GgufFile] = {}
        try:
            first = self._stack.enter_context(GgufFile(path))
            count = _part(first, "count", 1)
            if count == 1:
                self._add(first)
            else:
                names = part_names(path.name)
                if len(names) != count:
                    raise CheckpointError(
                        f"{path.name} is one of {count} parts, and not named"
                        f" NAME-00001-of-{count:05}.gguf"
                    )
                first = self._add_parts([path.with_name(name) for name in names])
            self._interleaved = family_of(first.metadata, first.name).interleaved
            self.config: ModelConfig = configure(first.metadata, self._entries, first.name)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> Set[str]:
        return self._entries.keys()

    @property
    def elements(self) -> int:
        return sum(math.prod(e.shape) for n, e in self._entries.items() if n != ROPE_FACTORS)

    def find(self, name: str) -> TensorEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"tensor '{clip(name)}' is missing")
        return entry

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.quant

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        entry, file = self.find(name), self._files[name]
        which = projection(name) if self._interleaved else None
        if which is None:
            file.read_into(entry, bytes_of(target), check)
            return
        half = self.config.head_dim // 2
        heads = self.config.heads if which == "q" else self.config.kv_heads
        stored = torch.empty_like(target)
        file.read_into(entry, bytes_of(stored), check)
        # Rows that turn together are neighbours; packed rows are whole, so they move as they are.
        pairs = stored.view(heads, half, 2, -1)
        target.view(heads, 2, half, -1).copy_(pairs.transpose(1, 2))

    def _add(self, file: GgufFile) -> None:
        for name, entry in file.entries.items():
            known = decoder_name(name)
            if known in self._entries:
                raise CheckpointError(f"tensor '{clip(name)}' is in two parts")
            self._entries[known] = attrs.evolve(entry, name=known)
            self._files[known] = file

    def _add_parts(self, paths: list[Path]) -> GgufFile:
        """Open all parts; the first one, which has the model's metadata."""
        files = [self._stack.enter_context(GgufFile(path)) for path in paths]
        for number, file in enumerate(files):
            if _part(file, "count", 1) != len(files) or _part(file, "no", 0) != number:
                raise CheckpointError(f"{file.name} says that it is another part")
            self._add(file)
        stated = _part(files[0], "tensors.count", len(self._entries))
        if stated != len(self._entries):
            raise CheckpointError(
                f"{files[0].name}: {len(self._entries)} tensors in all parts, but {stated} stated"
            )
        return files[0]


def _part(file: GgufFile, key: str, default: int) -> int:
    return Fields(file.metadata, file.name).integer(
        f"split.{key}", default, low=0 if key == "no" else 1, high=99_999
    )
