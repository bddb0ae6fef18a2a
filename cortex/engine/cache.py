"""The KV cache: keys and values of every layer in numbered blocks."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

from cortex.engine.models.config import ModelConfig

CPU_BLOCK = 32  # tokens; long enough for a gather to be a few large copies
CUDA_BLOCK = 64  # tokens; one block id a tile of a decode kernel
SPARE_BLOCKS = 2  # null and scrap


def block_size_of(device: torch.device) -> int:
    return CUDA_BLOCK if device.type == "cuda" else CPU_BLOCK


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of KV one token takes in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU from pages that the kernel hands out, zeroed, when they are first touched.

    torch would write them all at once, which makes a load wait and takes memory nobody uses yet;
    and an allocator's heap would keep them when they are let go.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    # Given back with the last tensor that shows them.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)


class KVCache:
    """``keys[layer]`` and ``values[layer]`` are ``(blocks + SPARE, block, kv_heads, head_dim)``.

    The null block is nobody's and stays zero: padding in block tables points to it. The scrap
    block takes what rows without a sequence write. All of it starts as zeros, because a masked
    position still multiplies what lies there by 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        shape = (blocks + SPARE_BLOCKS, block_size, config.kv_heads, config.head_dim)
        layers = range(config.layers)
        self.keys = [_zeros(shape, dtype, device) for _ in layers]
        self.values = [_zeros(shape, dtype, device) for _ in layers]

    @property
    def null_block(self) -> int:
        return self.blocks

    @property
    def scrap_block(self) -> int:
        return self.blocks + 1

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero *blocks*, whose contents are not finite; 0 times NaN is NaN for their next owner."""
        for tensor in (*self.keys, *self.values):
            for block in blocks:
                tensor[block].zero_()
