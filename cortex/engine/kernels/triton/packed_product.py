"""A product with a packed weight: by how many rows there are, one kernel or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
import triton

from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.packed_kernels import packed_gemv, packed_matmul, unpack_rows
from cortex.engine.kernels.triton.planes import WORD, Planes
from cortex.engine.kernels.triton.split_sum import split_sum, splits_for

MATMUL_TOKENS = 64  # beyond, the weight is unpacked and multiplied by cuBLAS
_BUCKETS = (1, 4, 16, 64)  # numbers of rows that are measured; others do as the next larger one
_UNPACKED = 1 << 26  # weights that are unpacked at a time: 128 MiB in bf16
_TILE = (4, 64, 4)  # rows, words, warps of unpacking
_GEMV_WORDS = 4096  # the most that a row may have: 32,768 inputs
_WARP_WORDS = 128  # 16 bytes for each thread of a warp
_WARPS_PER_SM = 16


@attrs.frozen
class Gemv:
    """Rows at a time, and how many lots of them are on their way."""

    rows: int
    stages: int


@attrs.frozen
class Matmul:
    rows: int
    words: int
    warps: int
    stages: int


@attrs.frozen
class Unpack:
    """The weight in full, then cuBLAS."""


Choice = Gemv | Matmul | Unpack
GEMVS = (Gemv(4, 1), Gemv(8, 1), Gemv(4, 3))
MATMULS = (Matmul(64, 16, 4, 3), Matmul(32, 32, 4, 3))


def _arguments(planes: Planes) -> tuple[Any, ...]:
    """The tensors that every kernel takes; what a layout does not have is not looked at."""
    low = planes.low
    return (
        low,
        low if planes.high is None else planes.high,
        planes.scales,
        planes.scales if planes.offsets is None else planes.offsets,
        low if planes.table is None else planes.table,
    )


def _features(planes: Planes, *, table: bool = True) -> dict[str, Any]:
    layout = planes.layout
    return {
        "LOW": layout.low,
        "HIGH": layout.high,
        "GROUP_WORDS": layout.group // WORD,
        "ZERO": layout.zero,
        "OFFSETS": layout.offsets,
        **({"TABLE": layout.table} if table else {}),
    }


def _sizes(planes: Planes) -> tuple[int, int]:
    """Words and groups of a row."""
    return planes.inputs // WORD, planes.inputs // planes.layout.group


def unpack(
    planes: Planes, out: torch.Tensor, *, first_row: int = 0, picked: torch.Tensor | None = None
) -> None:
    """Rows of the weight into *out* ``(rows, inputs)``: from *first_row* on, or those *picked*."""
    words, groups = _sizes(planes)
    rows, tile, warps = _TILE
    count = out.shape[0]
    unpack_rows[(triton.cdiv(count, rows), triton.cdiv(words, tile))](
        *_arguments(planes),
        planes.low if picked is None else picked,
        out,
        first_row,
        count,
        words,
        groups,
        **_features(planes),
        PICKED=picked is not None,
        ROWS=rows,
        TILE=tile,
        num_warps=warps,
    )


class PackedProduct:
    """`cortex.engine.kernels.ops.Product` of a weight in planes."""

    def __init__(self, planes: Planes, bias: torch.Tensor | None, device: Device) -> None:
        self.planes = planes
        self._bias = bias
        self._device = device
        self._choices = {tokens: self._chosen(tokens) for tokens in _BUCKETS}

    @property
    def bytes(self) -> int:
        return self.planes.bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[0]
        bucket = next((size for size in _BUCKETS if size >= tokens), None)
        if bucket is None or (tokens > 1 and x.element_size() > 2):
            return self.run(x, Unpack())  # tiles of fp32 take too much memory on the chip
        return self.run(x, self._choices[bucket])

    def run(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        """The product by the kernel that *choice* names; `Gemv` takes one row."""
        out = x.new_empty(x.shape[0], self.planes.rows)
        match choice:
            case Gemv():
                self._gemv(x, out, choice)
            case Matmul():
                self._matmul(x, out, choice)
            case Unpack():
                self._unpack(x, out)
        return out

    def _chosen(self, tokens: int) -> Choice:
        """What is quickest for *tokens* rows of this shape and layout, in bf16."""
        choices: list[Choice] = []
        words, _ = _sizes(self.planes)
        if tokens == 1 and words <= _GEMV_WORDS and not self.planes.layout.table:
            choices += GEMVS
        choices += MATMULS
        if tokens > 16:
            choices.append(Unpack())
        planes = self.planes
        x = torch.ones(tokens, planes.inputs, dtype=torch.bfloat16, device=self._device.device)
        key = (planes.layout, planes.rows, planes.inputs, tokens)
        launches = [self._launch(x, choice) for choice in choices]
        return choices[self._device.tuner.choose(key, launches)]

    def _launch(self, x: torch.Tensor, choice: Choice) -> Callable[[], torch.Tensor]:
        return lambda: self.run(x, choice)

    def _gemv(self, x: torch.Tensor, out: torch.Tensor, choice: Gemv) -> None:
        words, groups = _sizes(self.planes)
        tile = max(triton.next_power_of_2(words), 4)
        warps = max(min(tile // _WARP_WORDS, _WARPS_PER_SM), 1)
        resident = self._device.multiprocessors * (_WARPS_PER_SM // warps)
        packed_gemv[(min(triton.cdiv(self.planes.rows, choice.rows), resident),)](
            x,
            *_arguments(self.planes)[:-1],
            x if self._bias is None else self._bias,
            out,
            self.planes.rows,
            words,
            groups,
            **_features(self.planes, table=False),
            BIAS=self._bias is not None,
            ROWS=choice.rows,
            TILE=tile,
            STAGES=choice.stages,
            num_warps=warps,
        )

    def _matmul(self, x: torch.Tensor, out: torch.Tensor, choice: Matmul) -> None:
        words, groups = _sizes(self.planes)
        tokens, rows = out.shape
        tile_tokens = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        programs = triton.cdiv(rows, choice.rows) * triton.cdiv(tokens, tile_tokens)
        steps = triton.cdiv(words, choice.words)
        splits = splits_for(programs, steps, self._device.multiprocessors)
        parts = out
        if splits > 1 or self._bias is not None:
            parts = self._device.scratch.take("product", (splits, tokens, rows), torch.float32)
        packed_matmul[(triton.cdiv(rows, choice.rows), splits, triton.cdiv(tokens, tile_tokens))](
            x,
            *_arguments(self.planes),
            parts,
            tokens,
            rows,
            words,
            groups,
            triton.cdiv(steps, splits) * choice.words,
            **_features(self.planes),
            TOKENS=tile_tokens,
            ROWS=choice.rows,
            TILE=choice.words,
            num_warps=choice.warps,
            # Levels that are looked up would be fetched ahead one by one.
            num_stages=1 if self.planes.layout.table else choice.stages,
        )
        if parts is not out:
            split_sum(parts, self._bias, out)

    def _unpack(self, x: torch.Tensor, out: torch.Tensor) -> None:
        rows, inputs = self.planes.rows, self.planes.inputs
        step = max(_UNPACKED // inputs // 16 * 16, 16)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            weight = self._device.scratch.take("unpacked", (count, inputs), x.dtype)
            unpack(self.planes, weight, first_row=first)
            torch.mm(x, weight.t(), out=out[:, first : first + count])
        if self._bias is not None:
            out += self._bias
