"""What a model is said to take is what it takes, and what it took comes back."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint

from cortex.engine import memory
from cortex.engine.cache import KVCache
from cortex.engine.load.checkpoint import read_config
from cortex.engine.memory import Meter, held, trim_heap

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
    # Large enough that a huge page at the end of each region of weights is under 5 %.
    plain = write_checkpoint(tmp_path / "plain", num_hidden_layers=14, **MEDIUM)
    tied = write_checkpoint(
        tmp_path / "tied", num_hidden_layers=14, **MEDIUM, tie_word_embeddings=True
    )
    for told in probed(dtype, warm_up, plain, tied):
        assert told["loaded"] > 90 * MIB
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


def pages_in_ram(tensor: torch.Tensor) -> int:
    """How many of the pages that hold *tensor* have ever been touched."""
    first = tensor.data_ptr() // mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes - 1) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * first)
        entries = array("Q", file.read(8 * (last - first + 1)))
    return sum(entry >> 63 for entry in entries)


@linux
def test_a_cache_takes_no_memory_before_it_is_written(tmp_path: Path) -> None:
    config = read_config(write_checkpoint(tmp_path))
    cache = KVCache(config, blocks=4000, block_size=32, dtype=torch.float32, device=CPU)
    assert cache.bytes > 60 * MIB
    tensors = (*cache.keys, *cache.values)
    assert [pages_in_ram(tensor) for tensor in tensors] == [0] * len(tensors)
    cache.keys[0][7].fill_(1.0)
    touched = [pages_in_ram(tensor) for tensor in tensors]
    assert 1 <= touched[0] <= 512  # a block, or the huge page that it is in
    assert touched[1:] == [0] * (len(tensors) - 1)


def test_what_this_process_holds_is_known_on_linux() -> None:
    if sys.platform == "linux":
        assert (held(CPU) or 0) > MIB


@pytest.mark.parametrize(
    ("before", "now", "growth"), [(100, 170, 70), (170, 100, 0), (None, 100, None), (5, None, None)]
)
def test_a_meter_shows_what_was_added(
    monkeypatch: pytest.MonkeyPatch, before: int | None, now: int | None, growth: int | None
) -> None:
    readings = [before, now]
    monkeypatch.setattr(memory, "held", lambda device: readings.pop(0))
    assert Meter(CPU).growth() == growth
