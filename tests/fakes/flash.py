"""What torch's flash attention over packed rows computes, by dot products."""

from __future__ import annotations

import math

import torch


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    most_queries: int,
    most_keys: int,
    window: int | None,
) -> torch.Tensor:
    """Causal from the ends of queries and keys; *queries* and *keys* are cumulative."""
    out = torch.full_like(q, float("nan"))
    rows, columns = queries.tolist(), keys.tolist()
    for first, stop, low, high in zip(rows, rows[1:], columns, columns[1:], strict=False):
        assert stop - first <= most_queries
        assert high - low <= most_keys
        group = q.shape[1] // k.shape[1]
        part_k, part_v = (x[low:high].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first:stop], part_k) / math.sqrt(q.shape[-1])
        i = torch.arange(stop - first, device=q.device)[:, None] + (high - low) - (stop - first)
        j = torch.arange(high - low, device=q.device)
        seen = j <= i
        if window is not None:
            seen &= j > i - window
        scores.masked_fill_(~seen, float("-inf"))
        out[first:stop] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), part_v)
    return out
