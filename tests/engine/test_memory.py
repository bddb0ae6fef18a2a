"""What a model is said to take is what it takes, and what it took comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint

from cortex.engine.cache import KVCache
from cortex.engine.load.checkpoint import read_config
from cortex.engine.memory import Meter, give_back, held, trim_heap

CPU = torch.device("cpu")
MIB = 1 << 20
TESTS = Path(__file__).parents[1]
MEDIUM = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8000,
}

linux = pytest.mark.skipif(held(CPU) is None, reason="only Linux tells")


def probed(dtype: str, warm_up: Path, *directories: Path) -> list[dict[str, int]]:
    """What `fakes.memory_probe` says in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, "-m", "fakes.memory_probe", dtype, str(warm_up)]
    done = subprocess.run(
        [*command, *map(str, directories)], env=environ, stdout=subprocess.PIPE, timeout=120
    )
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


@linux
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_estimate_is_what_the_process_grows_by(tmp_path: Path, dtype: str) -> None:
    warm_up = write_checkpoint(tmp_path / "warm")
    plain = write_checkpoint(tmp_path / "plain", num_hidden_layers=4, **MEDIUM)
    tied = write_checkpoint(
        tmp_path / "tied", num_hidden_layers=4, **MEDIUM, tie_word_embeddings=True
    )
    for told in probed(dtype, warm_up, plain, tied):
        assert told["loaded"] > 30 * MIB
        assert told["estimated"] == pytest.approx(told["loaded"], rel=0.05)
        assert told["counted"] == told["estimated"]
        assert told["measured"] == pytest.approx(told["loaded"], rel=0.05)
        # A request touches a block of the cache, and not the 64 MiB of it.
        assert told["used"] < told["loaded"] + 32 * MIB


@linux
@pytest.mark.slow
def test_what_a_model_took_is_given_back_to_the_system(tmp_path: Path) -> None:
    if not trim_heap():
        pytest.skip("the C library gives nothing back")
    warm_up = write_checkpoint(tmp_path / "warm")
    large = write_checkpoint(tmp_path / "large", num_hidden_layers=16, **MEDIUM)
    for told in probed("float32", warm_up, large, large):
        assert told["loaded"] > 200 * MIB
        assert told["closed"] < 0.1 * told["loaded"]


@linux
def test_a_cache_takes_no_memory_before_it_is_written(tmp_path: Path) -> None:
    config = read_config(write_checkpoint(tmp_path))
    give_back()
    meter = Meter(CPU)
    cache = KVCache(config, blocks=4000, block_size=32, dtype=torch.float32, device=CPU)
    assert cache.bytes > 60 * MIB
    growth = meter.growth()
    assert growth is not None
    assert growth < 8 * MIB
    cache.keys[0].fill_(1.0)
    assert (meter.growth() or 0) > cache.bytes // 8
    del cache


@linux
def test_a_meter_shows_what_is_kept_and_never_less_than_nothing() -> None:
    kept = torch.ones(32 * MIB, dtype=torch.uint8)
    meter = Meter(CPU)
    more = torch.ones(48 * MIB, dtype=torch.uint8)
    growth = meter.growth()
    assert growth is not None
    assert 40 * MIB < growth < 56 * MIB
    del kept, more
    assert meter.growth() == 0
