"""A product with an FP8 weight, for checkpoints that come with one scale or with blocks of them."""

from __future__ import annotations

import torch
import triton

from cortex.engine.kernels.triton.dense_kernels import (
    FP8_BLOCK,
    dense_gemv,
    dense_matmul,
    unpack_fp8,
)
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.split_sum import split_sum, splits_for

_MATMUL_TOKENS = 64  # beyond, the weight is unpacked and multiplied by cuBLAS
_UNPACKED = 1 << 26  # weights that are unpacked at a time: 128 MiB in bf16
_GEMV = (4, 2048, 4)  # rows, inputs, warps
_MATMUL_ROWS = 32


class Fp8Product:
    """`cortex.engine.kernels.ops.Product` of a weight in e4m3.

    *weight* is ``(outputs, inputs)`` float8_e4m3fn, *scales* fp32: one number, or ``(outputs / 128,
    inputs / 128)`` rounded up. What a weight stands for is the product of the two.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        device: Device,
    ) -> None:
        rows, inputs = weight.shape
        blocks = (-(-rows // FP8_BLOCK), -(-inputs // FP8_BLOCK))
        if scales.numel() != 1 and tuple(scales.shape) != blocks:
            raise ValueError(f"scales of {tuple(scales.shape)} for a weight of {(rows, inputs)}")
        self._weight = weight.view(torch.uint8)
        self._scales = scales
        self._blocks = scales.numel() != 1
        self._bias = bias
        self._device = device

    @property
    def bytes(self) -> int:
        return self._weight.nbytes + self._scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], self._weight.shape[0])
        if x.shape[0] == 1:
            self._gemv(x, out)
        elif x.shape[0] <= _MATMUL_TOKENS:
            self._matmul(x, out)
        else:
            self._unpack(x, out)
        return out

    @property
    def _stride(self) -> int:
        return self._scales.shape[-1] if self._blocks else 0

    def _gemv(self, x: torch.Tensor, out: torch.Tensor) -> None:
        rows, inputs = self._weight.shape
        tile_rows, tile, warps = _GEMV
        dense_gemv[(triton.cdiv(rows, tile_rows),)](
            x,
            self._weight,
            self._scales,
            x if self._bias is None else self._bias,
            out,
            rows,
            inputs,
            self._stride,
            FP8=True,
            BLOCKS=self._blocks,
            BIAS=self._bias is not None,
            ROWS=tile_rows,
            TILE=min(tile, triton.next_power_of_2(inputs)),
            num_warps=warps,
        )

    def _matmul(self, x: torch.Tensor, out: torch.Tensor) -> None:
        rows, inputs = self._weight.shape
        tokens = x.shape[0]
        tile_tokens = 16 if tokens <= 16 else 64
        grid_rows = triton.cdiv(rows, _MATMUL_ROWS)
        steps = triton.cdiv(inputs, FP8_BLOCK)
        splits = splits_for(grid_rows, steps, self._device.multiprocessors)
        parts = out
        if splits > 1 or self._bias is not None:
            parts = self._device.scratch.take("product", (splits, tokens, rows), torch.float32)
        dense_matmul[(grid_rows, splits, triton.cdiv(tokens, tile_tokens))](
            x,
            self._weight,
            self._scales,
            parts,
            tokens,
            rows,
            inputs,
            triton.cdiv(steps, splits) * FP8_BLOCK,
            self._stride,
            FP8=True,
            BLOCKS=self._blocks,
            TOKENS=tile_tokens,
            ROWS=_MATMUL_ROWS,
            TILE=FP8_BLOCK,
            num_warps=4,
            num_stages=3,
        )
        if parts is not out:
            split_sum(parts, self._bias, out)

    def _unpack(self, x: torch.Tensor, out: torch.Tensor) -> None:
        rows, inputs = self._weight.shape
        step = max(_UNPACKED // inputs // FP8_BLOCK, 1) * FP8_BLOCK
        for first in range(0, rows, step):
            count = min(step, rows - first)
            weight = self._device.scratch.take("unpacked", (count, inputs), x.dtype)
            unpack_fp8[(triton.cdiv(count, 8), triton.cdiv(inputs, 512))](
                self._weight,
                self._scales,
                weight,
                first,
                count,
                inputs,
                self._stride,
                BLOCKS=self._blocks,
                ROWS=8,
                TILE=512,
                num_warps=4,
            )
            torch.mm(x, weight.t(), out=out[:, first : first + count])
        if self._bias is not None:
            out += self._bias
