"""The memory of keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint

from cortex.engine.cache import KVCache, block_size_of, bytes_per_token
from cortex.engine.load.checkpoint import read_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_zero_aligned_and_as_large_as_it_says(tmp_path: Path, dtype: torch.dtype):
    config = read_config(write_checkpoint(tmp_path))
    cache = KVCache(config, blocks=5, block_size=4, dtype=dtype, device=CPU)
    assert len(cache.keys) == len(cache.values) == config.layers
    for tensor in (*cache.keys, *cache.values):
        assert tensor.shape == (7, 4, 2, 16)
        assert tensor.dtype == dtype
        assert tensor.data_ptr() % 64 == 0
        assert not tensor.any()
    assert cache.bytes == 7 * 4 * bytes_per_token(config, dtype)
    assert (cache.null_block, cache.scrap_block) == (5, 6)


def test_cleared_blocks_are_finite_again_and_the_others_untouched(tmp_path: Path):
    config = read_config(write_checkpoint(tmp_path))
    cache = KVCache(config, blocks=3, block_size=4, dtype=torch.float32, device=CPU)
    for tensor in (*cache.keys, *cache.values):
        tensor[0], tensor[1], tensor[2] = 1.0, float("nan"), float("inf")
    cache.clear([1, 2])
    for tensor in (*cache.keys, *cache.values):
        assert (tensor[0] == 1).all()
        assert not tensor[1:].any()


def test_blocks_are_longer_on_a_gpu():
    assert block_size_of(CPU) == 32
    assert block_size_of(torch.device("cuda:0")) == 64
