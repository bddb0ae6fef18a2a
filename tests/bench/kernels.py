"""The native kernels by themselves, on an idle machine: ``kernels.py [threads]``.

Products of Qwen3-0.6B's shapes with 1, 4 and 8 rows: GB/s at which packed weights stream from
memory, and how many times as fast as oneDNN's bf16 product of the same shape that is. Then
attention of one layer (16 heads, 8 of keys, dimension 128). Weights are rotated so that no cache
holds them; figures are the best of several runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the neuron sets it

import attrs
import torch

from cortex.engine.kernels.native import load
from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.torch_products import dense_product
from cortex.engine.quant.types import TYPES, QuantType

SHAPES = {
    "qkv": (4096, 1024),
    "output": (1024, 2048),
    "gate_up": (6144, 1024),
    "down": (1024, 3072),
}
ROWS = (1, 4, 8)
BEYOND_CACHES = 192 << 20  # bytes of weights
RUNS = 5
CONTEXTS = ((1, 128), (1, 1024), (8, 256), (8, 1024))
CHUNKS = ((0, 512), (1024, 512))  # positions before, and in, a prompt's chunk

Product = Callable[[torch.Tensor], torch.Tensor]


@attrs.frozen(eq=False)
class Rows:
    """What `attend` reads of a Batch."""

    tables: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    decodes: int
    longest: int


def seconds(calls: list[Callable[[], object]]) -> float:
    """Of one call on average, in the best run."""
    times: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        for call in calls:
            call()
        times.append(time.perf_counter() - started)
    return min(times) / len(calls)


def product_seconds(make: Callable[[], Product], size: int, inputs: int) -> list[float]:
    products = [make() for _ in range(max(2, BEYOND_CACHES // size))]
    found: list[float] = []
    for rows in ROWS:
        x = torch.randn(rows, inputs).bfloat16()
        found.append(seconds([lambda p=p, x=x: p(x) for p in products]))
    return found


def bench_products(ops: NativeOps, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    dense = torch.randn(outputs, inputs).bfloat16()
    base = product_seconds(lambda: dense_product(dense, None), dense.nbytes, inputs)

    def report(name: str, size: int, found: list[float]) -> None:
        columns = [
            f"{taken * 1e6:7.0f} us {size / taken / 1e9:5.1f} GB/s {against / taken:5.2f}x"
            for taken, against in zip(found, base, strict=True)
        ]
        print(f"  {name:8s} " + " | ".join(columns), flush=True)

    report("oneDNN", dense.nbytes, base)
    report(
        "bf16",
        dense.nbytes,
        product_seconds(lambda: ops.product(dense, None, None), dense.nbytes, inputs),
    )

    def packed(kind: QuantType) -> torch.Tensor:
        return torch.zeros((outputs, kind.row_bytes(inputs)), dtype=torch.uint8)

    for kind in TYPES:
        weight = packed(kind)
        found = product_seconds(
            lambda kind=kind, weight=weight: ops.product(weight, kind, None), weight.nbytes, inputs
        )
        report(kind.name, weight.nbytes, found)


def bench_attention(ops: NativeOps, decodes: list[int], chunk: tuple[int, int] | None) -> None:
    heads, kv_heads, dim, block = 16, 8, 128, 32
    lengths = [*decodes, *([sum(chunk)] if chunk else [])]
    counts = [*([1] * len(decodes)), *([chunk[1]] if chunk else [])]
    width = -(-max(lengths) // block)
    blocks = width * len(lengths)
    layers = max(2, BEYOND_CACHES // (blocks * block * kv_heads * dim * 4))
    caches = [torch.randn(2, blocks, block, kv_heads, dim).bfloat16() for _ in range(layers)]
    firsts = torch.tensor([0, *counts]).cumsum(0).int()
    batch = Rows(
        torch.randperm(blocks).int().view(len(lengths), width),
        firsts,
        torch.tensor(lengths).int(),
        len(decodes),
        max(lengths),
    )
    q = torch.randn(sum(counts), heads, dim).bfloat16()
    taken = seconds([lambda c=c: ops.attend(q, c[0], c[1], batch, None) for c in caches])
    read = sum(lengths) * kv_heads * dim * 4
    what = f"chunk {chunk}" if chunk else f"{len(decodes)} rows at {decodes[0]}"
    print(f"  {what:18s} {taken * 1e6:7.0f} us {read / taken / 1e9:5.1f} GB/s of KV", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    library = load.library()
    if library is None:
        raise SystemExit("there are no native kernels here")
    ops = NativeOps(library)
    print(f"{torch.get_num_threads()} threads, variant {library.level()}")
    for name, shape in SHAPES.items():
        print(f"{name} {shape[0]} x {shape[1]}, at {', '.join(map(str, ROWS))} rows")
        bench_products(ops, shape)
    print("attention of one layer")
    for rows, length in CONTEXTS:
        bench_attention(ops, [length] * rows, None)
    for chunk in CHUNKS:
        bench_attention(ops, [], chunk)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
