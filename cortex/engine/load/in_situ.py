"""Dense weights that are quantised while they are loaded."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch

from cortex.engine.load.adapted import AdaptedSource
from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.safetensors import DTYPES
from cortex.engine.load.source import Source
from cortex.engine.quant.quantize import quantize
from cortex.engine.quant.recipes import Recipe
from cortex.engine.quant.types import FP8, QuantType
from cortex.errors import CheckpointError, clip

SLICE = 1 << 24  # weights between two looks at whether to go on


class QuantizingSource(AdaptedSource):
    """*source*, with the weights that *recipe* names packed. What is packed already stays so.

    The work is done on *device*: by as many threads as torch has on a CPU, else on the GPU, where
    a slice of the weight is for that time.
    """

    def __init__(self, source: Source, recipe: Recipe, device: torch.device) -> None:
        super().__init__(source)
        self._wanted = recipe.storage(source.config.layers)
        self._device = device

    def find(self, name: str) -> TensorEntry:
        entry = self._source.find(name)
        kind = self._kind(entry)
        return entry if kind is None else attrs.evolve(entry, dtype=kind.name.upper(), quant=kind)

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        packed = self._source.storage(name, shape)
        return self._wanted(name, shape) if packed is None else packed

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        entry = self._source.find(name)
        kind = self._kind(entry)
        if kind is None:
            self._source.read(name, target, check)
            return
        rows, inputs = entry.shape
        dense = torch.empty(rows, inputs, dtype=DTYPES[entry.dtype])
        self._source.read(name, dense, check)
        step = max(SLICE // inputs // FP8.block, 1) * FP8.block
        for row in range(0, rows, step):
            part = dense[row : row + step].to(self._device)
            try:
                packed = quantize(part, kind, threads=torch.get_num_threads())
            except ValueError as error:
                raise CheckpointError(
                    f"tensor '{clip(name)}' cannot be {kind.name}: {error}"
                ) from error
            target[row : row + step].copy_(packed)
            check(0)

    def _kind(self, entry: TensorEntry) -> QuantType | None:
        """The format that the dense *entry* is to have; None for what is passed on."""
        if len(entry.shape) != 2 or entry.quant is not None or entry.dtype not in DTYPES:
            return None
        rows, inputs = entry.shape
        return self._wanted(entry.name, (rows, inputs))
