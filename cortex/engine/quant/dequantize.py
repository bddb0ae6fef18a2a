"""Packed weights to plain ones, on any device: the oracle of every kernel that reads packed rows.

The layouts and formulas are those of the GGUF specification (ggml's types); fp32 results are the
same bits that its own package computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from cortex.engine.quant import types
from cortex.engine.quant.types import QuantType

CHUNK = 1 << 21  # weights at a time: what is between takes some twenty bytes for each

# The values of the two non-linear formats.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantize(packed: torch.Tensor, kind: QuantType, dtype: torch.dtype) -> torch.Tensor:
    """*packed* uint8 ``(rows, row bytes)`` as ``(rows, inputs)`` in *dtype*, on its device.

    Computed in fp32. ValueError unless the rows are whole blocks.
    """
    rows, width = packed.shape
    if packed.dtype != torch.uint8 or width % kind.bytes:
        raise ValueError(f"{packed.dtype} rows of {width} are not whole {kind.name} blocks")
    inputs = width // kind.bytes * kind.block
    weights = torch.empty(rows, inputs, dtype=dtype, device=packed.device)
    unpack = _UNPACK[kind.name]
    step = max(1, CHUNK // max(inputs, 1))
    for row in range(0, rows, step):
        blocks = packed[row : row + step].reshape(-1, kind.bytes)
        weights[row : row + step].view(-1, kind.block).copy_(unpack(blocks))
    return weights


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fp16 number at byte *at* of each block, ``(blocks, 1)`` in fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(octets: torch.Tensor, bits: int) -> torch.Tensor:
    """The fields of *bits* in ``(n, m, bytes)``, lowest first: ``(n, m, 8 / bits, bytes)``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=octets.device)
    return (octets[:, :, None] >> shifts[:, None]) & ((1 << bits) - 1)


def _nibbles(octets: torch.Tensor) -> torch.Tensor:
    """All low halves of ``(n, bytes)``, then all high ones: ``(n, 2 bytes)``."""
    return torch.cat((octets & 15, octets >> 4), -1)


def _fifth_bits(octets: torch.Tensor) -> torch.Tensor:
    """Bit i of ``(n, 4)`` bytes, worth 16: ``(n, 32)``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=octets.device)
    return (((octets[:, :, None] >> shifts) & 1) << 4).flatten(1)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (q.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return q.float() * _half(blocks, 0) + _half(blocks, 2)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 sub-blocks of 16: scales and minima of 4 bits, weights of 2."""
    scales = blocks[:, :16, None]
    scale = _half(blocks, 80)[:, :, None] * (scales & 15).float()
    least = _half(blocks, 82)[:, :, None] * (scales >> 4).float()
    q = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return (scale * q.float() - least).flatten(1)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 sub-blocks of 16: signed scales of 6 bits; weights of 2 bits, less 4 where a third bit
    is not set."""
    low = _nibbles(blocks[:, 96:104])
    high = _fields(blocks[:, None, 104:108], 2).flatten(1)
    scale = _half(blocks, 108) * ((low | (high << 4)).float() - 32)
    q = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    third = _fields(blocks[:, None, :32], 1).reshape(-1, 16, 16)
    return (scale[:, :, None] * (q.float() - 4 + (third << 2).float())).flatten(1)


def _scales_and_minima(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the 8 sub-blocks of Q4_K and Q5_K, ``(n, 8, 1)`` each, from 6 bits and two fp16 factors.

    Twelve bytes: the first four scales, then four minima, each with two bits of a later one on
    top; then the low halves of the last four scales and minima.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), -1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), -1)
    scale = _half(blocks, 0) * scales.float()
    least = _half(blocks, 2) * minima.float()
    return scale[:, :, None], least[:, :, None]


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least = _scales_and_minima(blocks)
    q = _fields(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (scale * q.float() - least).flatten(1)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least = _scales_and_minima(blocks)
    q = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    fifth = _fields(blocks[:, None, 16:48], 1)[:, 0]
    return (scale * (q | (fifth << 4)).float() - least).flatten(1)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 sub-blocks of 16: signed scales of 8 bits, weights of 4 and 2 bits less 32."""
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    q = (low | (high << 4)).reshape(-1, 16, 16)
    return (scale[:, :, None] * (q.float() - 32)).flatten(1)


@cache
def _iq4_values(device: torch.device) -> torch.Tensor:
    """Kept: while a CUDA graph is captured nothing can be copied from the host."""
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=device)


def _iq4(q: torch.Tensor) -> torch.Tensor:
    return _iq4_values(q.device)[q.int()]


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return _iq4(_nibbles(blocks[:, 2:])) * _half(blocks, 0)


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    """8 sub-blocks of 32: signed scales of 6 bits, the top two of each in a row of their own."""
    high = _fields(blocks[:, 2:4, None], 2).flatten(1)
    low = _fields(blocks[:, 4:8, None], 4).flatten(1)
    scale = _half(blocks, 0) * ((low | (high << 4)).float() - 32)
    q = _fields(blocks[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
    return (scale[:, :, None] * _iq4(q)).flatten(1)


def _fp8(blocks: torch.Tensor) -> torch.Tensor:
    scale = blocks[:, 128:].contiguous().view(torch.float32)
    return blocks[:, :128].view(torch.float8_e4m3fn).float() * scale


_UNPACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    types.Q8_0.name: _q8_0,
    types.Q4_0.name: _q4_0,
    types.Q4_1.name: _q4_1,
    types.Q5_0.name: _q5_0,
    types.Q5_1.name: _q5_1,
    types.Q2_K.name: _q2_k,
    types.Q3_K.name: _q3_k,
    types.Q4_K.name: _q4_k,
    types.Q5_K.name: _q5_k,
    types.Q6_K.name: _q6_k,
    types.IQ4_NL.name: _iq4_nl,
    types.IQ4_XS.name: _iq4_xs,
    types.FP8.name: _fp8,
}
