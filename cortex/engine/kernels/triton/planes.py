"""Packed weights as these kernels read them: planes of eight codes a word, scales apart.

A row of GGUF blocks interleaves scales with codes, so its loads are neither aligned nor wide. Once,
at load, every format becomes the same: ``value = scale * (code - zero) + offset``, or ``scale *
table[code]``, where word j of a plane holds the low (or the high) bits of codes 8 j to 8 j + 7 and
scales and offsets belong to groups of neighbouring inputs. The block formats are ggml's.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch

from cortex.engine.quant import types
from cortex.engine.quant.dequantize import IQ4_VALUES
from cortex.engine.quant.types import QuantType

WORD = 8  # codes
_CHUNK = 1 << 23  # weights that are repacked at a time

_WORD_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bits of a code's part


@attrs.frozen
class Layout:
    """How a format is kept: ``low`` and ``high`` bits a code, ``group`` inputs a scale."""

    low: int
    high: int
    group: int
    zero: int = 0
    offsets: bool = False
    table: bool = False

    def bytes(self, rows: int, inputs: int) -> int:
        """What such a weight takes, with scales in fp16."""
        codes = rows * inputs * (self.low + self.high) // 8
        scales = rows * (inputs // self.group) * (4 if self.offsets else 2)
        return codes + scales + (4 * len(IQ4_VALUES) if self.table else 0)


LAYOUTS = {
    types.Q4_0: Layout(4, 0, 32, zero=8),
    types.Q4_1: Layout(4, 0, 32, offsets=True),
    types.Q5_0: Layout(4, 1, 32, zero=16),
    types.Q5_1: Layout(4, 1, 32, offsets=True),
    types.Q8_0: Layout(4, 4, 32, zero=128),
    types.Q2_K: Layout(2, 0, 16, offsets=True),
    types.Q3_K: Layout(2, 1, 16, zero=4),
    types.Q4_K: Layout(4, 0, 32, offsets=True),
    types.Q5_K: Layout(4, 1, 32, offsets=True),
    types.Q6_K: Layout(4, 2, 16, zero=32),
    types.IQ4_NL: Layout(4, 0, 32, table=True),
    types.IQ4_XS: Layout(4, 0, 32, table=True),
}

# Codes (blocks, block) uint8, scales and offsets (blocks, groups) fp32.
_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fp16 at byte *at* of each block, ``(blocks, 1)`` fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """``(blocks, n)`` bytes to ``(blocks, 2 n)``: all low halves, then all high ones."""
    return torch.cat((data & 15, data >> 4), 1)


def _bits(data: torch.Tensor, width: int) -> torch.Tensor:
    """``(blocks, n)`` bytes to ``(blocks, 8 / width, n)`` fields, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=data.device)
    return (data[:, None] >> shifts[:, None]) & ((1 << width) - 1)


def _q4(blocks: torch.Tensor) -> _Parts:
    return _nibbles(blocks[:, 2:18]), _half(blocks, 0), None


def _q4_1(blocks: torch.Tensor) -> _Parts:
    return _nibbles(blocks[:, 4:20]), _half(blocks, 0), _half(blocks, 2)


def _fifth(data: torch.Tensor) -> torch.Tensor:
    """``(blocks, 4)`` bytes to the fifth bits of 32 codes, in place."""
    return _bits(data, 1).transpose(1, 2).reshape(-1, 32) << 4


def _q5_0(blocks: torch.Tensor) -> _Parts:
    return _nibbles(blocks[:, 6:22]) | _fifth(blocks[:, 2:6]), _half(blocks, 0), None


def _q5_1(blocks: torch.Tensor) -> _Parts:
    codes = _nibbles(blocks[:, 8:24]) | _fifth(blocks[:, 4:8])
    return codes, _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> _Parts:
    return blocks[:, 2:34] ^ 128, _half(blocks, 0), None


def _pairs(data: torch.Tensor) -> torch.Tensor:
    """``(blocks, 64)`` bytes of 2-bit fields to 256 codes: halves of 128, four fields of 32."""
    return _bits(data, 2).view(-1, 4, 2, 32).transpose(1, 2).reshape(-1, 256)


def _q2_k(blocks: torch.Tensor) -> _Parts:
    scales = blocks[:, :16]
    d, low = _half(blocks, 80), _half(blocks, 82)
    return _pairs(blocks[:, 16:80]), d * (scales & 15), -low * (scales >> 4)


def _q3_k(blocks: torch.Tensor) -> _Parts:
    high = _bits(blocks[:, :32], 1).reshape(-1, 256) << 2
    packed = blocks[:, 96:108]
    low = _nibbles(packed[:, :8])
    upper = _bits(packed[:, 8:], 2).reshape(-1, 16)
    scales = (low | upper << 4).float() - 32
    return _pairs(blocks[:, 32:96]) | high, _half(blocks, 108) * scales, None


def _scales_and_mins(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight offsets of a Q4_K or Q5_K block: six bits each in 12 bytes."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), 1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), 1)
    return _half(blocks, 0) * scales, -_half(blocks, 2) * mins


def _halves(data: torch.Tensor, width: int) -> torch.Tensor:
    """``(blocks, n)`` bytes, *width* at a time, to low halves and high halves in turn."""
    split = data.view(len(data), -1, width)
    return torch.stack((split & 15, split >> 4), 2).view(len(data), -1)


def _q4_k(blocks: torch.Tensor) -> _Parts:
    return (_halves(blocks[:, 16:].contiguous(), 32), *_scales_and_mins(blocks))


def _q5_k(blocks: torch.Tensor) -> _Parts:
    high = _bits(blocks[:, 16:48], 1).reshape(-1, 256) << 4
    return (_halves(blocks[:, 48:].contiguous(), 32) | high, *_scales_and_mins(blocks))


def _q6_k(blocks: torch.Tensor) -> _Parts:
    low = _halves(blocks[:, :128].contiguous(), 64)
    high = _bits(blocks[:, 128:192], 2).view(-1, 4, 2, 32).transpose(1, 2).reshape(-1, 256)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return low | high << 4, _half(blocks, 208) * scales, None


def _iq4_xs(blocks: torch.Tensor) -> _Parts:
    low = _bits(blocks[:, 4:8], 4).transpose(1, 2).reshape(-1, 8)
    high = _bits(blocks[:, 2:4], 2).transpose(1, 2).reshape(-1, 8)
    scales = (low | high << 4).float() - 32
    return _halves(blocks[:, 8:].contiguous(), 16), _half(blocks, 0) * scales, None


_READERS: dict[QuantType, Callable[[torch.Tensor], _Parts]] = {
    types.Q4_0: _q4,
    types.Q4_1: _q4_1,
    types.Q5_0: _q5_0,
    types.Q5_1: _q5_1,
    types.Q8_0: _q8_0,
    types.Q2_K: _q2_k,
    types.Q3_K: _q3_k,
    types.Q4_K: _q4_k,
    types.Q5_K: _q5_k,
    types.Q6_K: _q6_k,
    types.IQ4_NL: _q4,
    types.IQ4_XS: _iq4_xs,
}


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """``(rows, inputs)`` codes of *bits* each to words of eight, the first one lowest."""
    shifts = torch.arange(WORD, dtype=torch.int64, device=codes.device) * bits
    words = (codes.view(len(codes), -1, WORD).to(torch.int64) << shifts).sum(-1)
    dtype = _WORD_DTYPES[bits]
    if dtype == torch.uint8:
        return words.to(dtype)
    size = 1 << (WORD * bits)
    return torch.where(words >= size // 2, words - size, words).to(dtype)


def _words(rows: int, inputs: int, bits: int, device: torch.device) -> torch.Tensor:
    """Memory for one plane."""
    return torch.empty(rows, inputs // WORD, dtype=_WORD_DTYPES[bits], device=device)


@attrs.frozen(eq=False)
class Planes:
    """A weight of ``rows`` by ``inputs``, on its device."""

    rows: int
    inputs: int
    layout: Layout
    low: torch.Tensor  # (rows, inputs / 8) int32 or int16
    high: torch.Tensor | None  # (rows, inputs / 8)
    scales: torch.Tensor  # (rows, inputs / group) fp16, or fp32 where some exceed it
    offsets: torch.Tensor | None  # like scales
    table: torch.Tensor | None  # (16,) fp32

    @property
    def bytes(self) -> int:
        tensors = (self.low, self.high, self.scales, self.offsets, self.table)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @classmethod
    def of(cls, weight: torch.Tensor, quant: QuantType) -> Planes:
        """From GGUF blocks, ``(rows, row bytes)`` uint8. Waits for the device: only at load."""
        layout = LAYOUTS[quant]
        rows, inputs = len(weight), weight.shape[1] // quant.bytes * quant.block
        low = _words(rows, inputs, layout.low, weight.device)
        high = _words(rows, inputs, layout.high, weight.device) if layout.high else None
        scales: list[torch.Tensor] = []
        offsets: list[torch.Tensor] = []
        step = max(_CHUNK // inputs, 1)
        for first in range(0, rows, step):
            blocks = weight[first : first + step].reshape(-1, quant.bytes)
            codes, scale, offset = _READERS[quant](blocks)
            codes = codes.view(-1, inputs)
            part = slice(first, first + len(codes))
            low[part] = _packed(codes & ((1 << layout.low) - 1), layout.low)
            if high is not None:
                high[part] = _packed(codes >> layout.low, layout.high)
            scales.append(_kept(scale.view(len(codes), -1)))
            if offset is not None:
                offsets.append(_kept(offset.reshape(len(codes), -1)))
        table = torch.tensor(IQ4_VALUES, dtype=torch.float32) if layout.table else None
        return cls(
            rows=rows,
            inputs=inputs,
            layout=layout,
            low=low,
            high=high,
            scales=torch.cat(scales),  # in fp32 as soon as one part is
            offsets=torch.cat(offsets) if offsets else None,
            table=None if table is None else table.to(weight.device),
        )


def _kept(values: torch.Tensor) -> torch.Tensor:
    """*values*, products of an fp16 number and an integer, in fp16 unless some exceed it.

    None of them is rounded by more than fp16's half unit: where the product is subnormal the
    number was, and then it is exact.
    """
    short = values.half()
    return short if bool(short.isfinite().all()) else values
