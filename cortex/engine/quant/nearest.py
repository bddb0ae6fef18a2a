"""Blocks of 32 weights rounded to the nearest level between their extremes.

The formulas are the reference quantisers of the GGUF specification's simple formats, operation by
operation: the bytes are the same as theirs.
"""

from __future__ import annotations

import torch

# The largest fp32 number below a half: added before truncation it rounds halves away from zero.
BELOW_HALF = 0.49999997


def halves(values: torch.Tensor) -> torch.Tensor:
    """fp32 ``(blocks, n)`` as the bytes of fp16, ``(blocks, 2 n)``. ValueError beyond its range."""
    rounded = values.half()
    if not bool(torch.isfinite(rounded).all()):
        raise ValueError("weights are not finite, or too large for scales in fp16")
    return rounded.view(torch.uint8)


def inverse(values: torch.Tensor) -> torch.Tensor:
    """``1 / values``; 0 for 0, and for what is so small that fp32 has no inverse."""
    inverted = 1 / values
    return inverted.masked_fill_(inverted.isinf(), 0)


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """``(blocks, 32)`` fp32 to ``(blocks, 34)`` bytes: -127 to 127 times a scale."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    q = blocks * inverse(scale)
    q += torch.copysign(q.new_full((), BELOW_HALF), q)
    return torch.cat((halves(scale), q.to(torch.int8).view(torch.uint8)), -1)


def _signed(blocks: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale by which the weight of largest magnitude is *least* (negative), and the weights
    over it, less *least*: 0 to ``-2 least - 1``."""
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = extreme / least
    q = blocks * inverse(scale)
    q += 0.5 - least
    return scale, q.to(torch.uint8).clamp_(max=-2 * least - 1)


def _between(blocks: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale and minimum by which the weights are 0 to *levels*, and these."""
    least = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - least) / levels
    q = (blocks - least) * inverse(scale)
    q += 0.5
    return scale, least, q.to(torch.uint8).clamp_(max=levels)


def nibbles(q: torch.Tensor) -> torch.Tensor:
    """The low bits of ``(blocks, 2 n)``, the first half low, the second high: ``(blocks, n)``."""
    first, second = (q & 15).chunk(2, -1)
    return first | (second << 4)


def _fifth_bits(q: torch.Tensor) -> torch.Tensor:
    """The fifth bits of ``(blocks, 32)``, lowest first: ``(blocks, 4)``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=q.device)
    return ((q >> 4).view(-1, 4, 8) << shifts).sum(-1, dtype=torch.uint8)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """To 18 bytes: -8 to 7 times a scale of either sign."""
    scale, q = _signed(blocks, -8)
    return torch.cat((halves(scale), nibbles(q)), -1)


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """To 22 bytes: -16 to 15 times a scale of either sign."""
    scale, q = _signed(blocks, -16)
    return torch.cat((halves(scale), _fifth_bits(q), nibbles(q)), -1)


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """To 20 bytes: 0 to 15 times a scale, and a minimum."""
    scale, least, q = _between(blocks, 15)
    return torch.cat((halves(scale), halves(least), nibbles(q)), -1)


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """To 24 bytes: 0 to 31 times a scale, and a minimum."""
    scale, least, q = _between(blocks, 31)
    return torch.cat((halves(scale), halves(least), _fifth_bits(q), nibbles(q)), -1)
