"""Attention of chunks of prompts: their keys gathered out of the cache, then torch's flash kernel.

torch aligns causality to the ends of queries and keys, so a chunk whose earlier positions are
cached needs no more than all its keys in one piece. A prompt that stands alone and is fresh may
also go to cuDNN, which knows no earlier positions and is quicker where it is new enough.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import attrs
import torch
import triton
import triton.language as tl

from cortex.engine.faults import is_out_of_memory
from cortex.engine.kernels.triton.jit import jit
from cortex.engine.kernels.triton.tuning import Tuner

if TYPE_CHECKING:
    from cortex.engine.batch import Batch

MAX_HEAD_DIM = 256  # of torch's flash attention
_LONG = 1024  # rows from which on the kernel matters
_COPY = 4096  # elements that a program copies at a time

# (q, k, v, cumulative queries, cumulative keys, most queries, most keys, window) -> like q
Flash = Callable[
    [
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        int,
        int,
        "int | None",
    ],
    torch.Tensor,
]


@jit
def _gather(
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lows: tl.tensor,
    ends: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    table_stride: tl.tensor,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    COPY: tl.constexpr,
) -> None:
    """One block of one chunk: positions of WIDTH elements each, to where its keys go."""
    chunk = tl.program_id(0)
    number = tl.program_id(1)
    start = tl.load(ends + chunk)
    stop = tl.load(ends + chunk + 1)
    first = start + number * BLOCK
    if first >= stop:
        return
    column = tl.load(lows + chunk) + number
    block = tl.load(tables + chunk * table_stride + column).to(tl.int64)
    elements = tl.minimum(stop - first, BLOCK) * WIDTH
    source = block * BLOCK * WIDTH
    target = first.to(tl.int64) * WIDTH
    for at in tl.range(0, BLOCK * WIDTH, COPY):
        i = at + tl.arange(0, COPY)
        inside = i < elements
        tl.store(k + target + i, tl.load(keys + source + i, mask=inside), mask=inside)
        tl.store(v + target + i, tl.load(values + source + i, mask=inside), mask=inside)


@attrs.frozen(eq=False)
class Chunks:
    """Where the keys of a batch's chunks go, for the layers of one window."""

    tables: torch.Tensor  # (chunks, blocks)
    lows: torch.Tensor  # (chunks,) the first block that is seen
    queries: torch.Tensor  # (chunks + 1,) cumulative
    keys: torch.Tensor  # (chunks + 1,) cumulative
    most_queries: int
    most_keys: int
    total_keys: int
    run: int | None  # the first block, where a single chunk's are neighbours
    fresh: bool  # a single chunk with nothing before it

    @classmethod
    def of(cls, batch: Batch, block: int, window: int | None) -> Chunks:
        """Those of *batch* that are not in decode."""
        chunks = batch.chunks[batch.decodes :]
        seen = [0 if window is None else max(0, c.start + 1 - window) for c in chunks]
        lows = [position // block for position in seen]
        lengths = [c.start + c.count - low * block for c, low in zip(chunks, lows, strict=True)]
        counts = [chunk.count for chunk in chunks]
        longest = chunks[0].start + chunks[0].count
        alone = len(chunks) == 1

        def ints(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32).to(
                batch.lengths.device, non_blocking=True
            )

        return cls(
            tables=batch.tables[batch.decodes :],
            lows=ints(lows),
            queries=ints(_cumulative(counts)),
            keys=ints(_cumulative(lengths)),
            most_queries=max(counts),
            most_keys=max(lengths),
            total_keys=sum(lengths),
            run=_run(chunks[0].sequence.blocks[lows[0] : -(-longest // block)]) if alone else None,
            fresh=alone and chunks[0].start == 0,
        )


def _run(blocks: list[int]) -> int | None:
    """The first of *blocks* where they follow one another."""
    return blocks[0] if blocks == list(range(blocks[0], blocks[0] + len(blocks))) else None


def _cumulative(counts: list[int]) -> list[int]:
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return ends


def gather(
    keys: torch.Tensor, values: torch.Tensor, chunks: Chunks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of *chunks* from the first block that is seen: ``(keys, kv_heads, dim)``.

    Those of neighbouring blocks are where they are, and not copied.
    """
    block, kv_heads, dim = keys.shape[1:]
    if chunks.run is not None:
        first, total = chunks.run * block, chunks.total_keys
        k, v = (cache.view(-1, kv_heads, dim)[first : first + total] for cache in (keys, values))
        return k, v
    k, v = (cache.new_empty(chunks.total_keys, kv_heads, dim) for cache in (keys, values))
    width = kv_heads * dim
    _gather[(chunks.lows.shape[0], -(-chunks.most_keys // block))](
        keys,
        values,
        chunks.tables,
        chunks.lows,
        chunks.keys,
        k,
        v,
        chunks.tables.stride(0),
        BLOCK=block,
        WIDTH=width,
        COPY=min(_COPY, triton.next_power_of_2(block * width)),
        num_warps=4,
    )
    return k, v


def flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    most_queries: int,
    most_keys: int,
    window: int | None,
) -> torch.Tensor:
    """torch's kernel over packed ``(rows, heads, dim)``, causal from the ends, GQA as it is."""
    windows = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        queries,
        keys,
        most_queries,
        most_keys,
        0.0,
        True,
        False,
        scale=q.shape[-1] ** -0.5,
        **windows,
    )[0]
    return out


def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """cuDNN's kernel for one fresh prompt ``(rows, heads, dim)``; RuntimeError where it refuses."""
    wide = (x.transpose(0, 1)[None] for x in (q, k, v))
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *wide, None, False, 0.0, True, False, scale=q.shape[-1] ** -0.5
    )[0]
    return out[0].transpose(0, 1)


def can_flash(dtype: torch.dtype, head_dim: int, window: int | None) -> bool:
    """Whether torch's kernel takes such heads (and, in this version, windows)."""
    if dtype not in (torch.bfloat16, torch.float16) or head_dim > MAX_HEAD_DIM or head_dim % 8:
        return False
    if window is None:
        return True
    schema = torch.ops.aten._flash_attention_forward.default._schema
    return "window_size_left" in {argument.name for argument in schema.arguments}


class PrefillAttention:
    """Attends the chunks of a step; what is the same in every layer is made once a batch."""

    def __init__(self, attend: Flash = flash, tuner: Tuner | None = None) -> None:
        self._attend = attend
        self._tuner = tuner  # None: cuDNN is not asked
        self._chunks: dict[int | None, Chunks] = {}
        self._usable: dict[Hashable, bool] = {}

    def begin_step(self) -> None:
        self._chunks.clear()

    def __call__(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        """``(rows, heads, head_dim)``, the rows after those in decode, to the same shape."""
        chunks = self._chunks.get(window)
        if chunks is None:
            chunks = self._chunks[window] = Chunks.of(batch, keys.shape[1], window)
        k, v = gather(keys, values, chunks)
        if window is not None and window >= chunks.most_keys:
            window = None

        def whole() -> torch.Tensor:
            return self._attend(
                q, k, v, chunks.queries, chunks.keys, chunks.most_queries, chunks.most_keys, window
            )

        if (
            window is None
            and chunks.fresh
            and len(q) >= _LONG
            and self._prefers_cudnn(q, k, v, whole)
        ):
            return cudnn(q, k, v)
        return whole()

    def _prefers_cudnn(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        otherwise: Callable[[], torch.Tensor],
    ) -> bool:
        """Whether cuDNN takes such heads and is quicker with them, measured with the first ones."""
        if self._tuner is None:
            return False
        key = ("prefill", q.dtype, *q.shape[1:], k.shape[1])
        if key not in self._usable:
            try:
                cudnn(q, k, v)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._usable[key] = False
            else:
                self._usable[key] = True
        if not self._usable[key]:
            return False
        return self._tuner.choose(key, (otherwise, lambda: cudnn(q, k, v))) == 1
