"""Checkpoints with FP8 weights as a source of a decoder's weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Set

import torch

from cortex.engine.load.adapted import AdaptedSource
from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.safetensors import DTYPES
from cortex.engine.load.scheme import Fp8Scheme
from cortex.engine.load.source import Source
from cortex.engine.quant import fp8
from cortex.engine.quant.recipes import fitting
from cortex.engine.quant.types import FP8, QuantType
from cortex.errors import CheckpointError, UnsupportedModel, clip

FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
SCALES = ("weight_scale_inv", "weight_scale")  # both are factors of the weight
# What activations and a cache in FP8 would be scaled by. Both are kept in the compute dtype here.
_UNUSED = re.compile(
    r".*\.(?:input_scale|activation_scale|output_scale|(?:k|v|q|prob_output)_scale)"
)
SLICE = 1 << 24  # weights that are unpacked at a time


class Fp8Source(AdaptedSource):
    """*source*, with FP8 weights multiplied by their scales.

    With *keep* (see `fp8.has_fp8`), those that `types.FP8` can hold stay in eight bits: e4m3 with
    one scale, or one for each 128 x 128. All others become *dtype*, fp32 or bf16.
    """

    def __init__(
        self, source: Source, scheme: Fp8Scheme, dtype: torch.dtype, *, keep: bool
    ) -> None:
        super().__init__(source)
        self._scheme = scheme
        self._dtype = dtype
        self._keep = keep
        self._weights = {
            name
            for name in source.names
            if name.endswith(".weight") and source.find(name).dtype in FLOATS
        }
        scales = {f"{w.removesuffix('weight')}{scale}" for w in self._weights for scale in SCALES}
        self._names = {n for n in source.names if n not in scales and not _UNUSED.fullmatch(n)}

    @property
    def names(self) -> Set[str]:
        return self._names

    @property
    def elements(self) -> int:
        return sum(math.prod(self._source.find(name).shape) for name in self._names)

    def find(self, name: str) -> TensorEntry:
        entry = self._source.find(name)
        if name not in self._weights:
            return entry
        kind = self._kind(entry)
        plain = "BF16" if self._dtype == torch.bfloat16 else "F32"
        size = entry.size + self._scale(entry).size
        return TensorEntry(
            name, plain if kind is None else kind.name.upper(), entry.shape, 0, size, kind
        )

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        if name not in self._weights:
            return self._source.storage(name, shape)
        return self._kind(self._source.find(name))

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        if name not in self._weights:
            self._source.read(name, target, check)
            return
        entry = self._source.find(name)
        scale = self._scale(entry)
        weight = torch.empty(entry.shape, dtype=FLOATS[entry.dtype])
        scales = torch.empty(scale.shape, dtype=DTYPES[scale.dtype])
        self._source.read(name, weight, check)
        self._source.read(scale.name, scales, check)
        factors = scales.float().view(self._grid(entry, scale))
        if not bool(torch.isfinite(factors).all()):
            raise CheckpointError(f"tensor '{clip(scale.name)}' is not finite")
        if self._kind(entry) is not None:
            blocks = (-(-entry.shape[0] // fp8.BLOCK), entry.shape[1] // fp8.BLOCK)
            target.copy_(fp8.join(weight, factors.expand(blocks)))
            return
        self._multiply(weight, factors, target, check)

    def _multiply(
        self,
        weight: torch.Tensor,
        factors: torch.Tensor,
        target: torch.Tensor,
        check: Callable[[int], None],
    ) -> None:
        rows, inputs = weight.shape
        high, wide = self._cell(rows, inputs, factors)
        step = max(SLICE // inputs // high, 1) * high
        for row in range(0, rows, step):
            part = weight[row : row + step].float()
            scales = factors[row // high : -(-(row + len(part)) // high)]
            scales = scales.repeat_interleave(high, 0)[: len(part)]
            scales = scales.repeat_interleave(wide, 1)[:, :inputs]
            target[row : row + step] = part.mul_(scales)
            check(0)

    def _cell(self, rows: int, inputs: int, factors: torch.Tensor) -> tuple[int, int]:
        """Rows and inputs that share one of *factors*."""
        if self._scheme.block is not None and factors.numel() != 1:
            return self._scheme.block
        return rows if len(factors) == 1 else 1, inputs

    def _kind(self, entry: TensorEntry) -> QuantType | None:
        grid = self._grid(entry, self._scale(entry))
        square = grid == (1, 1) or self._scheme.block == (FP8.block, FP8.block)
        if not (self._keep and square and entry.dtype == "F8_E4M3"):
            return None
        return fitting(FP8, (entry.shape[0], entry.shape[1]))

    def _scale(self, entry: TensorEntry) -> TensorEntry:
        """The entry of the scales of the weight *entry*."""
        stem = entry.name.removesuffix("weight")
        found = [stem + scale for scale in SCALES if stem + scale in self._source.names]
        if len(found) != 1:
            raise CheckpointError(
                f"tensor '{clip(entry.name)}' is FP8 and has {len(found)} scales; it must have one"
            )
        scale = self._source.find(found[0])
        if scale.dtype not in DTYPES:
            raise UnsupportedModel(f"tensor '{clip(scale.name)}' is {scale.dtype}, not a float")
        return scale

    def _grid(self, entry: TensorEntry, scale: TensorEntry) -> tuple[int, int]:
        """How many scales there are along the rows and along the inputs of *entry*."""
        if len(entry.shape) != 2 or not math.prod(entry.shape):
            raise CheckpointError(f"tensor '{clip(entry.name)}' is FP8 and no matrix")
        rows, inputs = entry.shape
        if math.prod(scale.shape) == 1:
            return (1, 1)
        if self._scheme.block is not None:
            high, wide = self._scheme.block
            if scale.shape == (-(-rows // high), -(-inputs // wide)):
                return (scale.shape[0], scale.shape[1])
        elif scale.shape in ((rows,), (rows, 1)):
            return (rows, 1)
        raise CheckpointError(
            f"tensor '{clip(scale.name)}' has shape {clip(list(scale.shape), 60)}, which does not "
            f"belong to {rows} x {inputs} weights"
        )
