"""Every kernel compiles for every architecture, and keeps to what its threads can have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

# Bytes of shared memory that one program may use (CUDA C++ programming guide, by compute
# capability; sm_120 has as much as sm_89).
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
SCRIPT = Path(__file__).with_name("ahead_of_time.py")
ROOT = Path(__file__).resolve().parents[4]


def compiled(architecture: int, cache: Path) -> list[dict]:
    """What the script says. It compiles, so it must not be told to interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(cache / str(architecture)),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, str(architecture)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Two processes at a time; the architecture that is asked for first comes first."""
    cache = tmp_path_factory.mktemp("triton")
    with ThreadPoolExecutor(2) as pool:
        futures: dict[int, Future] = {a: pool.submit(compiled, a, cache) for a in (90, 80, 89, 120)}
        yield futures


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_kernels_compile_within_the_shared_memory_there_is(kernels, architecture):
    made = kernels[architecture].result()
    assert {"_attend", "_merge", "_place", "packed_gemv", "dense_gemv", "pick"} <= {
        kernel["kernel"] for kernel in made
    }
    for kernel in made:
        assert kernel["shared"] <= SHARED[architecture], kernel


@pytest.mark.slow
def test_keys_and_values_are_copied_ahead_and_sixteen_bytes_at_a_time(kernels):
    made = kernels[90].result()
    attention = [kernel for kernel in made if kernel["kernel"] == "_attend"]
    assert len(attention) == 5
    for kernel in attention:
        assert kernel["async_copies"] >= 32
        # Several programs share a multiprocessor.
        assert kernel["shared"] <= 100 << 10


@pytest.mark.slow
def test_what_is_bound_by_memory_reads_sixteen_bytes_a_thread(kernels):
    made = kernels[90].result()
    for name in ("_rms_norm", "_add_rms_norm", "_silu_mul", "_place", "dense_gemv"):
        found = [kernel for kernel in made if kernel["kernel"] == name]
        assert found
        assert all(kernel["wide_loads"] for kernel in found)
    for kernel in made:
        if kernel["kernel"] == "packed_gemv" and kernel["constants"]["LOW"] == 4:
            assert kernel["wide_loads"] or kernel["async_copies"]
