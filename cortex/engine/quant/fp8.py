"""Weights in e4m3 with a scale for each block of 128 x 128, and their packed rows."""

from __future__ import annotations

import torch

from cortex.engine.quant.types import FP8

BLOCK = FP8.block
LARGEST = 448.0  # of e4m3, which has no infinity


def has_fp8(device: torch.device) -> bool:
    """Whether *device* multiplies in FP8: a GPU of compute capability 8.9 or above."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def expand(scales: torch.Tensor, rows: int) -> torch.Tensor:
    """``(blocks, m)``, one a block of rows, as ``(rows, m)``."""
    return scales.repeat_interleave(BLOCK, 0)[:rows]


def join(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """*weight* ``(rows, inputs)`` float8_e4m3fn and *scales* ``(rows / 128 rounded up,
    inputs / 128)`` as packed rows of `types.FP8`."""
    rows, inputs = weight.shape
    octets = weight.view(torch.uint8).view(rows, -1, BLOCK)
    factors = expand(scales.float(), rows).contiguous().view(torch.uint8).view(rows, -1, 4)
    return torch.cat((octets, factors), -1).view(rows, FP8.row_bytes(inputs))


def split(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `join` was given: contiguous, on the device of *packed*.

    ValueError where rows that should share their scales do not.
    """
    rows = len(packed)
    blocks = packed.view(rows, -1, FP8.bytes)
    weight = blocks[..., :BLOCK].reshape(rows, -1).view(torch.float8_e4m3fn)
    factors = blocks[..., BLOCK:].contiguous().view(torch.float32)[..., 0]
    scales = factors[::BLOCK].contiguous()
    if not torch.equal(expand(scales, rows), factors):
        raise ValueError("rows of one FP8 block have scales of their own")
    return weight, scales


def quantize(weight: torch.Tensor) -> torch.Tensor:
    """*weight* ``(rows, inputs)`` of any float dtype as packed rows of `types.FP8`.

    Each block's largest magnitude becomes that of e4m3. ValueError for weights that are not finite,
    and unless rows are whole blocks.
    """
    rows, inputs = weight.shape
    FP8.row_bytes(inputs)  # refuses
    tall = -(-rows // BLOCK)
    largest = weight.abs().float().view(rows, -1, BLOCK).amax(-1)
    padded = largest.new_zeros(tall * BLOCK, inputs // BLOCK)
    padded[:rows] = largest
    scales = padded.view(tall, BLOCK, -1).amax(1) / LARGEST
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("weights are not finite")
    inverse = torch.where(scales > 0, 1 / scales, 0.0).nan_to_num_(posinf=0.0)
    steps = weight.float().view(rows, -1, BLOCK) * expand(inverse, rows)[..., None]
    values = steps.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(rows, inputs)
    return join(values, scales)
