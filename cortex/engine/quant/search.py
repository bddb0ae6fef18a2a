"""Super-blocks of 256 weights, whose scales are searched for: the K formats of GGUF.

Rounding between the extremes of a sub-block wastes levels on outliers. As ggml does, several grids
are tried, each is fitted to the weights by least squares, and the one with the smallest error
stays. In the formats with a minimum an error counts by the weight's magnitude, since large weights
carry more of a product; in Q6_K all count alike.
"""

from __future__ import annotations

import torch

from cortex.engine.quant.nearest import halves, inverse

# How many levels more than there are the range of a sub-block is divided into, at each try. Finer
# steps, or a second refinement, lower the error by less than 1 %.
OVERSHOOT = (-1.0, -0.5, 0.0, 0.5, 1.0)


class _Fit:
    """The best ``x ~ scale q - least`` so far of sub-blocks ``(n, size)``; both are ``>= 0``."""

    def __init__(self, x: torch.Tensor, levels: int) -> None:
        self._x = x
        self._levels = levels
        self._weight = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
        self._weighted = self._weight * x
        self._w = self._weight.sum(-1, keepdim=True)
        self._wx = self._weighted.sum(-1, keepdim=True)
        self.low = x.amin(-1, keepdim=True).clamp_(max=0)
        self.span = x.amax(-1, keepdim=True) - self.low
        self.scale = self.span / levels
        self.offset = self.low
        # Short of the sum of w x^2, which all tries share.
        self._error = torch.full_like(self.span, torch.inf)

    def attempt(self, steps: torch.Tensor, low: torch.Tensor) -> None:
        """Round to *steps* a unit from *low* on, and keep the fit to that where it is better."""
        q = (self._x - low).mul_(steps).round_().clamp_(0, self._levels)
        wq = self._weight * q
        sum_q = wq.sum(-1, keepdim=True)
        sum_qq = wq.mul_(q).sum(-1, keepdim=True)
        sum_qx = q.mul_(self._weighted).sum(-1, keepdim=True)
        determinant = self._w * sum_qq - sum_q * sum_q
        scale = (self._w * sum_qx - self._wx * sum_q) / determinant
        offset = (sum_qq * self._wx - sum_q * sum_qx) / determinant
        # What is subtracted cannot be negative: where it would be, the fit is one of the scale.
        above = offset > 0
        scale = torch.where(above, sum_qx / sum_qq, scale)
        offset = offset.masked_fill(above, 0)
        error = scale * (scale * sum_qq + 2 * (offset * sum_q - sum_qx))
        error += offset * (offset * self._w - 2 * self._wx)
        better = (error < self._error) & (determinant > 0) & (scale > 0)
        self._error = torch.where(better, error, self._error)
        self.scale = torch.where(better, scale, self.scale)
        self.offset = torch.where(better, offset, self.offset)


def _fit(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and what is subtracted for sub-blocks ``(n, size)``: ``(n, 1)`` each."""
    fit = _Fit(x, levels)
    for overshoot in OVERSHOOT:
        fit.attempt((levels + overshoot) / fit.span, fit.low)
    fit.attempt(1 / fit.scale, fit.offset)
    return fit.scale, -fit.offset


def _in_64ths(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(n, 8)`` numbers ``>= 0`` as a factor ``(n, 1)``, in fp16, and 6 bits each."""
    factor = (values.amax(-1, keepdim=True) / 63).half().float()
    return factor, (values * inverse(factor)).round_().clamp_(0, 63)


def _affine(blocks: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of super-blocks ``(n, 256)``: what Q4_K and Q5_K begin with, ``(n, 16)`` bytes, and the
    weights as 0 to *levels*, ``(n, 8, 32)``."""
    x = blocks.reshape(-1, 32)
    scale, least = _fit(x, levels)
    step, scales = _in_64ths(scale.view(-1, 8))
    depth, minima = _in_64ths(least.view(-1, 8))
    # From here on with the scales as they are stored.
    q = x + (depth * minima).view(-1, 1)
    q = q.mul_(inverse((step * scales).view(-1, 1))).round_().clamp_(0, levels)
    s, m = scales.to(torch.uint8), minima.to(torch.uint8)
    first, second = s[:, :4] | ((s[:, 4:] >> 4) << 6), m[:, :4] | ((m[:, 4:] >> 4) << 6)
    third = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    head = torch.cat((halves(step), halves(depth), first, second, third), -1)
    return head, q.to(torch.uint8).view(-1, 8, 32)


def _pairs(q: torch.Tensor) -> torch.Tensor:
    """The low four bits of ``(n, 8, 32)``, two sub-blocks in a row of bytes: ``(n, 128)``."""
    return ((q[:, 0::2] & 15) | ((q[:, 1::2] & 15) << 4)).flatten(1)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """``(blocks, 256)`` fp32 to ``(blocks, 144)`` bytes: 8 sub-blocks of 0 to 15."""
    head, q = _affine(blocks, 15)
    return torch.cat((head, _pairs(q)), -1)


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """To 176 bytes: 8 sub-blocks of 0 to 31."""
    head, q = _affine(blocks, 31)
    shifts = torch.arange(8, dtype=torch.uint8, device=q.device)[:, None]
    fifth = ((q >> 4) << shifts).sum(1, dtype=torch.uint8)
    return torch.cat((head, fifth, _pairs(q)), -1)


def _symmetric(x: torch.Tensor, least: int) -> torch.Tensor:
    """The scale ``(n, 1)`` of sub-blocks ``(n, size)`` that are *least* to ``-least - 1``."""
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best = torch.zeros_like(extreme)
    scale = torch.zeros_like(extreme)
    for overshoot in OVERSHOOT:
        q = (x * ((least - overshoot) / extreme)).round_().clamp_(least, -least - 1)
        sum_qq = q.square().sum(-1, keepdim=True)
        sum_qx = q.mul_(x).sum(-1, keepdim=True)
        explained = sum_qx * sum_qx / sum_qq  # of the sum of squares, by the best scale for q
        better = explained > best
        best = torch.where(better, explained, best)
        scale = torch.where(better, sum_qx / sum_qq, scale)
    return scale


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """To 210 bytes: 16 sub-blocks of -32 to 31."""
    x = blocks.reshape(-1, 16)
    scale = _symmetric(x, -32).view(-1, 16)
    extreme = scale.gather(-1, scale.abs().argmax(-1, keepdim=True))
    step = (extreme / -128).half().float()
    scales = (scale * inverse(step)).round_().clamp_(-128, 127)
    q = x * inverse((step * scales).view(-1, 1))
    q = q.round_().clamp_(-32, 31).add_(32).to(torch.uint8).view(-1, 2, 4, 32)
    low = (q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=q.device)[:, None]
    high = ((q >> 4) << shifts).sum(2, dtype=torch.uint8)
    stored = scales.to(torch.int8).view(torch.uint8)
    return torch.cat((low.flatten(1), high.flatten(1), stored, halves(step)), -1)
