"""Attention over the paged KV cache: gather what is seen, then scaled dot products.

Sequences in decode are attended to in groups of similar length; chunks of prompts one by one,
with the positions before the chunk read from the cache like its own. The query heads that share a
key head are folded into a dimension that keys and values do not have, so that nothing is repeated
in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F

MASK_ELEMENTS = 1 << 22  # of a prompt chunk's mask at a time: 16 MiB in fp32


@attrs.frozen(eq=False)
class Keys:
    """Which blocks are read: ``count`` of each of ``sequences``, flat, or a run of neighbours.

    ``length`` cuts the tail when all sequences see the same number of positions.
    """

    blocks: torch.Tensor  # (sequences * count,)
    sequences: int
    count: int
    length: int
    run: int | None = None  # the first block, where a single sequence's are consecutive


@attrs.frozen(eq=False)
class Group:
    """Rows ``first`` to ``first + keys.sequences`` of the batch, one token each."""

    first: int
    keys: Keys
    mask: torch.Tensor | None  # additive, (sequences, 1, 1, length)


@attrs.frozen(eq=False)
class Span:
    """Rows ``first`` to ``first + count``: a chunk that starts at ``start`` within its keys."""

    first: int
    count: int
    start: int
    keys: Keys
    window: int | None


@attrs.frozen(eq=False)
class View:
    """What every row of a batch sees in the layers of one window."""

    groups: tuple[Group, ...]
    spans: tuple[Span, ...]


class Gatherer:
    """Copies blocks next to each other, in memory that is kept from call to call."""

    def __init__(self) -> None:
        self._scratch: list[torch.Tensor] = []

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._scratch)

    def gather(self, keys: Keys, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The blocks of each cache as ``(sequences, kv_heads, length, head_dim)``, strided."""
        return tuple(self._one(i, keys, cache) for i, cache in enumerate(caches))

    def _one(self, index: int, keys: Keys, cache: torch.Tensor) -> torch.Tensor:
        block, kv_heads, head_dim = cache.shape[1:]
        if keys.run is not None:
            found = cache[keys.run : keys.run + keys.count]
        else:
            rows = keys.sequences * keys.count
            width = block * kv_heads * head_dim
            found = self._memory(index, rows * width, cache).view(rows, width)
            torch.index_select(cache.view(-1, width), 0, keys.blocks, out=found)
        shaped = found.view(keys.sequences, keys.count * block, kv_heads, head_dim)
        return shaped[:, : keys.length].transpose(1, 2)

    def _memory(self, index: int, elements: int, like: torch.Tensor) -> torch.Tensor:
        while len(self._scratch) <= index:
            self._scratch.append(like.new_empty(0))
        if self._scratch[index].numel() < elements:
            self._scratch[index] = like.new_empty(elements)
        return self._scratch[index][:elements]


def _decode(q: torch.Tensor, group: Group, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``(sequences, heads, head_dim)`` queries against their gathered keys and values."""
    sequences, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    folded = q.view(sequences, kv_heads, heads // kv_heads, head_dim)
    out = F.scaled_dot_product_attention(folded, k, v, attn_mask=group.mask)
    return out.reshape(sequences, heads * head_dim)


def prompt_mask(rows: range, length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Additive ``(rows, length)`` mask: row i sees key j <= i, and j > i - window."""
    i = torch.arange(rows.start, rows.stop, device=like.device)[:, None]
    j = torch.arange(length, device=like.device)
    hidden = j > i
    if window is not None:
        hidden |= j <= i - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, float("-inf")
    )


def _prompt(
    q: torch.Tensor,
    span: Span,
    masks: Sequence[torch.Tensor | None],
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """``(count, heads, head_dim)`` queries of one chunk against ``(1, kv_heads, keys, dim)``."""
    count, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    folded = q.view(count, kv_heads, group, head_dim).permute(2, 1, 0, 3)
    k, v = k.expand(group, -1, -1, -1), v.expand(group, -1, -1, -1)
    rows = mask_rows(span.keys.length)
    parts = []
    for index, mask in enumerate(masks):
        part = folded[:, :, index * rows : (index + 1) * rows] if mask is not None else folded
        parts.append(
            F.scaled_dot_product_attention(part, k, v, attn_mask=mask, is_causal=mask is None)
        )
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return out.permute(2, 1, 0, 3).reshape(count, heads * head_dim)


def mask_rows(length: int) -> int:
    """How many rows of a chunk share one mask over *length* keys."""
    return max(1, MASK_ELEMENTS // length)


def span_masks(span: Span, like: torch.Tensor) -> list[torch.Tensor | None]:
    """The masks of a chunk, one for every `mask_rows` rows; [None] where plain causal will do."""
    length, stop = span.keys.length, span.start + span.count
    if span.start == 0 and length == span.count and (span.window is None or span.window >= stop):
        return [None]
    rows = mask_rows(length)
    return [
        prompt_mask(range(first, min(first + rows, stop)), length, span.window, like)
        for first in range(span.start, stop, rows)
    ]


@attrs.define(eq=False)
class Attention:
    """Attends the rows of one step. ``masks`` are made once a step and shared by the layers."""

    gatherer: Gatherer
    _masks: dict[int, list[torch.Tensor | None]] = attrs.field(factory=dict)

    def begin_step(self) -> None:
        self._masks.clear()

    def __call__(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View
    ) -> torch.Tensor:
        """``(tokens, heads, head_dim)`` to ``(tokens, heads * head_dim)``, over *view*."""
        parts: list[torch.Tensor] = []
        for group in view.groups:
            k, v = self.gatherer.gather(group.keys, keys, values)
            rows = q[group.first : group.first + group.keys.sequences]
            parts.append(_decode(rows, group, k, v))
        for span in view.spans:
            k, v = self.gatherer.gather(span.keys, keys, values)
            rows = q[span.first : span.first + span.count]
            parts.append(_prompt(rows, span, self._span_masks(span, q), k, v))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _span_masks(self, span: Span, like: torch.Tensor) -> list[torch.Tensor | None]:
        masks = self._masks.get(id(span))
        if masks is None:
            masks = self._masks[id(span)] = span_masks(span, like)
        return masks
