"""A product with a weight in 16 or 32 bits: cuBLAS, or for a few rows what is quicker."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
import torch.nn.functional as F
import triton

from cortex.engine.kernels.triton.dense_kernels import dense_gemv, dense_matmul
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.split_sum import split_sum, splits_for

_WARP_INPUTS = 256  # 16 bytes for each thread of a warp
_BUCKETS = (1, 4, 16)  # numbers of rows that are measured; others do as the next larger one


@attrs.frozen
class Gemv:
    """Rows of a program, and how many warps share them: 256 inputs each at a time."""

    rows: int
    warps: int


@attrs.frozen
class Matmul:
    rows: int
    inputs: int
    warps: int
    stages: int


@attrs.frozen
class Library:
    """cuBLAS."""


Choice = Gemv | Matmul | Library
GEMVS = (Gemv(4, 4), Gemv(8, 4), Gemv(2, 8), Gemv(4, 8))
MATMULS = (Matmul(32, 128, 4, 4), Matmul(16, 256, 4, 4))


class DenseProduct:
    """`cortex.engine.kernels.ops.Product`; *weight* is kept as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, device: Device) -> None:
        self.weight = weight
        self._bias = bias
        self._device = device
        self._choices = {tokens: self._chosen(tokens) for tokens in _BUCKETS}

    @property
    def bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[0]
        bucket = next((size for size in _BUCKETS if size >= tokens), None)
        return self.run(x, Library() if bucket is None else self._choices[bucket])

    def run(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        """The product by what *choice* names; `Gemv` takes one row."""
        if isinstance(choice, Library):
            return F.linear(x, self.weight, self._bias)
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        if isinstance(choice, Gemv):
            self._gemv(x, out, choice)
        else:
            self._matmul(x, out, choice)
        return out

    def _chosen(self, tokens: int) -> Choice:
        choices: list[Choice] = [Library()]
        if self.weight.dtype in (torch.bfloat16, torch.float16):
            choices += GEMVS if tokens == 1 else MATMULS
        rows, inputs = self.weight.shape
        x = torch.ones(tokens, inputs, dtype=self.weight.dtype, device=self._device.device)
        key = (rows, inputs, self.weight.dtype, tokens)
        launches = [self._launch(x, choice) for choice in choices]
        return choices[self._device.tuner.choose(key, launches)]

    def _launch(self, x: torch.Tensor, choice: Choice) -> Callable[[], torch.Tensor]:
        return lambda: self.run(x, choice)

    def _gemv(self, x: torch.Tensor, out: torch.Tensor, choice: Gemv) -> None:
        rows, inputs = self.weight.shape
        warps = max(min(choice.warps, triton.next_power_of_2(inputs) // _WARP_INPUTS), 1)
        dense_gemv[(triton.cdiv(rows, choice.rows),)](
            x,
            self.weight,
            x,
            x if self._bias is None else self._bias,
            out,
            rows,
            inputs,
            0,
            FP8=False,
            BLOCKS=False,
            BIAS=self._bias is not None,
            ROWS=choice.rows,
            TILE=warps * _WARP_INPUTS,
            num_warps=warps,
        )

    def _matmul(self, x: torch.Tensor, out: torch.Tensor, choice: Matmul) -> None:
        rows, inputs = self.weight.shape
        tokens = x.shape[0]
        programs = triton.cdiv(rows, choice.rows) * triton.cdiv(tokens, 16)
        steps = triton.cdiv(inputs, choice.inputs)
        splits = splits_for(programs, steps, self._device.multiprocessors)
        parts = out
        if splits > 1 or self._bias is not None:
            parts = self._device.scratch.take("product", (splits, tokens, rows), torch.float32)
        dense_matmul[(triton.cdiv(rows, choice.rows), splits, triton.cdiv(tokens, 16))](
            x,
            self.weight,
            x,
            parts,
            tokens,
            rows,
            inputs,
            triton.cdiv(steps, splits) * choice.inputs,
            0,
            FP8=False,
            BLOCKS=False,
            TOKENS=16,
            ROWS=choice.rows,
            TILE=choice.inputs,
            num_warps=choice.warps,
            num_stages=choice.stages,
        )
        if parts is not out:
            split_sum(parts, self._bias, out)
