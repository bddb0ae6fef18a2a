"""Threads that share loops: the same results whoever takes part, and whoever comes in between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from fakes.packed import random_packed

from cortex.engine.kernels.native.arena import Arena
from cortex.engine.kernels.native.products import Memory, packed_product
from cortex.engine.quant.types import Q8_0


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def product_of(library, seed: int = 0):
    torch.manual_seed(seed)
    return packed_product(library, Arena(), Memory(), random_packed(Q8_0, 640, 512), Q8_0, None)


@pytest.mark.parametrize("count", [2, 3, 8, 300])
def test_any_number_of_threads_computes_the_same(library, threads, count):
    product = product_of(library)
    x = torch.randn(9, 512).bfloat16()
    threads(1)
    wanted = product(x)
    threads(count)  # more than there are cores, and more than there may be helpers
    for _ in range(20):
        assert torch.equal(product(x), wanted)


def test_loops_of_several_threads_at_once_do_not_mix(library):
    """One has the helpers, the others compute alone."""
    products = [product_of(library, seed) for seed in range(4)]
    inputs = [torch.randn(5, 512).bfloat16() for _ in products]
    wanted = [product(x) for product, x in zip(products, inputs, strict=True)]
    wrong: list[int] = []

    def work(number: int) -> None:
        torch.set_num_threads(3)
        found = (products[number](inputs[number]) for _ in range(60))
        wrong.extend(number for y in found if not torch.equal(y, wanted[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


ENDS = """
import torch
from cortex.engine.kernels.native import load
from cortex.engine.kernels.native.ops import NativeOps
torch.set_num_threads(4)
library = load.library()
assert library is not None
ops = NativeOps(library)
both = torch.randn(64, 8192)
for _ in range(5):
    ops.silu_mul(both)
print("done")
"""


@pytest.mark.slow
def test_a_process_ends_while_helpers_sleep(cache):
    environ = {**os.environ, "CORTEX_CACHE_DIR": str(cache), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", ENDS], env=environ, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
