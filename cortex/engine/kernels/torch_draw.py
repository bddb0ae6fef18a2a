"""Drawing tokens with every parameter on the device: by sorting, which is slow and plainly right.

The sampler (`cortex.engine.sampler`) does the same with parameters that the host knows, and leaves
out what no row asks for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cortex.engine.kernels.ops import DrawParams

GREEDY_BELOW = 1e-5  # temperatures under it would overflow fp32 and mean greedy anyway
LANE = 512  # tokens whose weights are summed at once


def invert(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Where the cumulative sum of each row passes its number's share of the row's sum.

    ``(rows, vocabulary)`` weights of at least 0 and ``(rows,)`` numbers in [0, 1) to ``(rows,)``
    indices, never of a weight of 0. In two levels, since a cumulative sum over a vocabulary is not
    vectorised and costs forty times the sums of its parts.
    """
    padded = F.pad(weights, (0, -weights.shape[1] % LANE))
    lanes = padded.reshape(len(weights), -1, LANE)
    sums = lanes.sum(-1).double()
    ends = sums.cumsum(-1)
    at = numbers[:, None] * ends[:, -1:]
    lane = torch.searchsorted(ends, at, right=True).clamp_(max=ends.shape[1] - 1)
    inside = lanes.gather(1, lane[:, :, None].expand(-1, 1, LANE))[:, 0].double().cumsum(-1)
    rest = at - ends.gather(1, lane) + sums.gather(1, lane)
    # The two levels are rounded apart: stay within the lane, short of its end.
    rest = torch.minimum(rest.clamp_(min=0), inside[:, -1:] * (1 - 1e-12))
    found = torch.searchsorted(inside, rest, right=True)
    return (lane * LANE + found)[:, 0].clamp_(max=weights.shape[1] - 1)


def draw(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """`cortex.engine.kernels.ops.Ops.draw`."""
    size = logits.shape[1]
    warm = params.temperature >= GREEDY_BELOW
    scaled = logits / torch.where(warm, params.temperature, 1.0)[:, None]
    best = scaled.sort(-1, descending=True).values
    top = best[:, :1]
    limit = torch.where(params.top_k > 0, params.top_k, size).clamp(max=size).long()
    floor = best.gather(1, limit[:, None] - 1)
    total = (scaled - top).exp_().mul_(scaled >= floor).sum(-1, keepdim=True)
    mass = (best - top).exp_().div_(total).cumsum(-1, dtype=torch.float64)
    share = params.top_p.double()[:, None]
    # Kept are the best ones up to and with the first whose sum reaches the share.
    kept = (mass < share).sum(-1, keepdim=True).clamp_(max=size - 1)
    nucleus = best.gather(1, kept).masked_fill_(share >= 1, -torch.inf)
    threshold = torch.maximum(torch.maximum(floor, nucleus), top + params.min_p.log()[:, None])
    weights = (scaled - top).exp_().mul_(scaled >= threshold)
    return torch.where(warm, invert(weights, params.uniform), logits.argmax(-1))
