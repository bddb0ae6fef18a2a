"""The Triton kernels on a GPU: right, and how near the device's ceilings: ``python
tests/bench/cuda_kernels.py``.

Each is compared with fp64 or the reference operations on fresh random inputs, its output poisoned
before, and timed by CUDA events around graph replays, rotating among inputs that together are
several times the L2. Prints a line each: error, microseconds, and the fraction of what the same
run measured a copy to move or a product to compute. A failure is printed, and the next one follows.
Shapes are Qwen3-8B's.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import attrs
import torch
import torch.nn.functional as F
from fakes.packed import random_packed

from cortex.engine.kernels.ops import Angles, DrawParams
from cortex.engine.kernels.torch_draw import draw
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton import dense_product, packed_product, self_test
from cortex.engine.kernels.triton.decode_attention import DecodeAttention
from cortex.engine.kernels.triton.dense_product import DenseProduct
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.fp8_product import Fp8Product
from cortex.engine.kernels.triton.packed_product import PackedProduct
from cortex.engine.kernels.triton.planes import Planes
from cortex.engine.kernels.triton.prefill_attention import Chunks, flash, gather
from cortex.engine.kernels.triton.tuning import Tuner
from cortex.engine.kernels.triton_ops import TritonOps
from cortex.engine.quant import types
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.fp8 import quantize, split

CUDA = torch.device("cuda")
HALF = torch.bfloat16
HEADS, KV_HEADS, DIM, HIDDEN, INNER, BLOCK, VOCAB = 32, 8, 128, 4096, 12288, 64, 151936
BUDGET = 85.0  # seconds, after which what is left is skipped

started = time.monotonic()


class Ceilings:
    """Bytes a second of a copy, read and written; operations a second of a bf16 product."""

    def __init__(self) -> None:
        source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device=CUDA)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / (1e-6 * timed([lambda: target.copy_(source)]))
        a, b = (torch.randn(8192, 8192, dtype=HALF, device=CUDA) for _ in range(2))
        out = torch.empty_like(a)
        self.matmul = 2 * 8192**3 / (1e-6 * timed([lambda: torch.mm(a, b, out=out)]))


def timed(works: list[Callable[[], object]], runs: int = 15) -> float:
    """Median microseconds of one of *works*, which are captured together into a graph."""
    for work in works[:2]:
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    times = []
    for _ in range(runs):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times) * 1000 / len(works)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference over that of *wanted*; NaN where there is one."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


class Bench:
    def __init__(self) -> None:
        self.ceilings = Ceilings()
        self.failures = 0

    def line(
        self,
        name: str,
        wrong: float,
        limit: float,
        micros: float | None = None,
        *,
        moved: float = 0,
        operations: float = 0,
    ) -> None:
        good = wrong <= limit  # which NaN is not
        self.failures += not good
        text = f"{name:<44} {'ok ' if good else 'BAD'} error {wrong:8.1e}"
        if micros is not None:
            text += f" {micros:9.1f} us"
            seconds = micros * 1e-6
            if moved:
                rate = moved / seconds
                text += f" {rate / 1e12:6.2f} TB/s {rate / self.ceilings.bandwidth:5.0%} of copy"
            if operations:
                rate = operations / seconds
                text += f" {rate / 1e12:6.0f} TF/s {rate / self.ceilings.matmul:5.0%} of matmul"
        print(text, flush=True)

    def try_out(self, check: Callable[[Bench], None]) -> None:
        if time.monotonic() - started > BUDGET:
            print(f"{check.__name__}: skipped, out of time", flush=True)
            return
        begun = time.monotonic()
        try:
            check(self)
        except Exception:  # of any kind: the next check is another kernel
            self.failures += 1
            print(f"{check.__name__}: FAILED", flush=True)
            print("  " + "\n  ".join(traceback.format_exc().splitlines()[-4:]), flush=True)
        torch.cuda.empty_cache()
        print(f"  ({check.__name__}: {time.monotonic() - begun:.1f} s)", flush=True)


def random(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.randn(shape, device=CUDA).to(dtype)


def poisoned(like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, float("nan"))


def self_tested(bench: Bench) -> None:
    self_test.check(CUDA)
    bench.line("self test", 0.0, 0.0)


def decode_attention(bench: Bench) -> None:
    shapes = [(1, 1024, None), (1, 32768, None), (8, 4096, None), (32, 1024, None)]
    shapes += [(256, 1024, None), (32, 8192, 4096)]
    for batch, length, window in shapes:
        attention_line(bench, batch, length, window, DIM, HEADS, KV_HEADS)
    for dim, heads, kv_heads in ((64, 14, 2), (80, 32, 32), (256, 16, 8)):
        attention_line(bench, 8, 2048, None, dim, heads, kv_heads)


def attention_line(
    bench: Bench,
    batch: int,
    length: int,
    window: int | None,
    dim: int,
    heads: int,
    kv_heads: int,
) -> None:
    device = Device.of(CUDA)
    decode = DecodeAttention(device.scratch, device.multiprocessors)
    width = -(-length // BLOCK)
    blocks = batch * width
    seen = min(length, window or length)
    moved = 2 * batch * seen * kv_heads * dim * 2
    caches = [
        tuple(random(blocks, BLOCK, kv_heads, dim) for _ in range(2))
        for _ in range(max(1, min(32, (256 << 20) // moved)))
    ]
    tables = torch.randperm(blocks, device=CUDA).view(batch, width).int()
    # Lengths differ, the longest is *length*.
    lengths = (length - 7 * torch.arange(batch, device=CUDA) % (length // 2)).int()
    firsts = torch.arange(batch + 1, dtype=torch.int32, device=CUDA)
    q = random(batch, heads, dim)
    out = poisoned(q.view(batch, -1))

    def run(keys: torch.Tensor, values: torch.Tensor, sizes: torch.Tensor) -> None:
        decode(
            q,
            keys,
            values,
            tables=tables,
            firsts=firsts,
            lengths=sizes,
            queries=1,
            window=window,
            out=out,
        )

    keys, values = caches[0]
    run(keys, values, lengths)
    wrong = 0.0
    for s in {0, batch // 2, batch - 1}:
        size = int(lengths[s])
        low = 0 if window is None else max(0, size - window)
        k, v = (
            c[tables[s].long()].reshape(-1, kv_heads, dim)[low:size].double() for c in caches[0]
        )
        group = heads // kv_heads
        folded = q[s].double().view(kv_heads, group, dim)
        scores = torch.einsum("kgd,lkd->kgl", folded, k) / math.sqrt(dim)
        wanted = torch.einsum("kgl,lkd->kgd", scores.softmax(-1), v)
        wrong = max(wrong, error(out[s].view_as(wanted), wanted))
    full = torch.full_like(lengths, length)
    pairs = itertools.islice(itertools.cycle(caches), max(8, len(caches)))
    works = [lambda pair=pair: run(*pair, full) for pair in pairs]
    name = f"attention B={batch} L={length} dim={dim} {heads}/{kv_heads} w={window}"
    bench.line(name, wrong, 1e-2, timed(works), moved=moved)


def verify_attention(bench: Bench) -> None:
    """Four rows a sequence, as when drafts are checked."""
    device = Device.of(CUDA)
    batch, length, rows = 4, 1000, 4
    keys, values = (random(batch * 16, BLOCK, KV_HEADS, DIM) for _ in range(2))
    tables = torch.randperm(batch * 16, device=CUDA).view(batch, 16).int()
    q = random(batch * rows, HEADS, DIM)
    out = poisoned(q.view(batch * rows, -1))
    DecodeAttention(device.scratch, device.multiprocessors)(
        q,
        keys,
        values,
        tables=tables,
        firsts=(torch.arange(batch + 1, device=CUDA) * rows).int(),
        lengths=torch.full((batch,), length, dtype=torch.int32, device=CUDA),
        queries=rows,
        window=None,
        out=out,
    )
    wrong = 0.0
    for row in range(batch * rows):
        end = length - rows + row % rows + 1
        k, v = (
            c[tables[row // rows].long()].reshape(-1, KV_HEADS, DIM)[:end].double()
            for c in (keys, values)
        )
        folded = q[row].double().view(KV_HEADS, -1, DIM)
        scores = torch.einsum("kgd,lkd->kgl", folded, k) / math.sqrt(DIM)
        wanted = torch.einsum("kgl,lkd->kgd", scores.softmax(-1), v)
        wrong = max(wrong, error(out[row].view_as(wanted), wanted))
    bench.line("attention, 4 rows a sequence", wrong, 1e-2)


def prefill_attention(bench: Bench) -> None:
    """A chunk of 2048 after 2048 cached positions, and a fresh one of 1000."""
    lengths, counts = [4096, 1000], [2048, 1000]
    keys, values = (random(200, BLOCK, KV_HEADS, DIM) for _ in range(2))
    tables = torch.randperm(200, device=CUDA)[:128].view(2, 64).int()
    chunks = tuple(
        SimpleNamespace(start=length - count, count=count)
        for length, count in zip(lengths, counts, strict=True)
    )
    batch = SimpleNamespace(
        chunks=chunks,
        decodes=0,
        tables=tables,
        lengths=torch.tensor(lengths, dtype=torch.int32, device=CUDA),
    )
    q = random(sum(counts), HEADS, DIM)
    for window in (None, 512):
        made = Chunks.of(batch, BLOCK, window)
        k, v = gather(keys, values, made)
        out = flash(q, k, v, made.queries, made.keys, made.most_queries, made.most_keys, window)
        wrong, first = 0.0, 0
        for s, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            full_k, full_v = (
                c[tables[s].long()].reshape(-1, KV_HEADS, DIM)[:length] for c in (keys, values)
            )
            i = torch.arange(length - count, length, device=CUDA)[:, None]
            j = torch.arange(length, device=CUDA)
            mask = (j <= i) if window is None else (j <= i) & (j > i - window)
            wanted = F.scaled_dot_product_attention(
                *(
                    x.transpose(0, 1)[None].float()
                    for x in (q[first : first + count], full_k, full_v)
                ),
                attn_mask=mask,
                enable_gqa=True,
            )[0].transpose(0, 1)
            wrong = max(wrong, error(out[first : first + count], wanted))
            first += count
        bench.line(f"prefill attention w={window}", wrong, 1e-2)
    made = Chunks.of(batch, BLOCK, None)
    moved = 4 * made.total_keys * KV_HEADS * DIM * 2
    micros = timed([lambda: gather(keys, values, made)] * 8)
    bench.line("gather of 5096 positions", 0.0, 0.0, micros, moved=moved)
    k, v = gather(keys, values, made)
    pairs = 2048 * 2048 + 2048 * 2049 / 2 + 1000 * 1001 / 2
    arguments = (made.queries, made.keys, made.most_queries, made.most_keys, None)
    micros = timed([lambda: flash(q, k, v, *arguments)] * 4)
    bench.line("torch's flash over it", 0.0, 0.0, micros, operations=4 * pairs * HEADS * DIM)


def small_operations(bench: Bench) -> None:
    ours, reference = TritonOps(CUDA), TorchOps(CUDA)
    for tokens in (1, 32, 2048):
        x, delta, weight = random(tokens, HIDDEN), random(tokens, HIDDEN), random(HIDDEN)
        wanted_total, wanted = reference.add_rms_norm(x.clone(), delta, weight, 1e-6)
        total, out = ours.add_rms_norm(x.clone(), delta, weight, 1e-6)
        wrong = max(error(out, wanted), error(total, wanted_total))
        kept = x.clone()
        micros = timed([lambda k=kept, d=delta, w=weight: ours.add_rms_norm(k, d, w, 1e-6)] * 8)
        bench.line(f"add_rms_norm x{tokens}", wrong, 5e-3, micros, moved=4 * x.nbytes)
        both = random(tokens, 2 * INNER)
        wrong = error(ours.silu_mul(both), reference.silu_mul(both))
        micros = timed([lambda b=both: ours.silu_mul(b)] * 8)
        bench.line(f"silu_mul x{tokens}", wrong, 5e-3, micros, moved=1.5 * both.nbytes)
        placed(bench, ours, reference, tokens)
    x, weight = random(33, 1000), random(1000)
    wanted = reference.rms_norm(x, weight, 1e-6)
    bench.line("rms_norm", error(ours.rms_norm(x, weight, 1e-6), wanted), 5e-3)


def placed(bench: Bench, ours: TritonOps, reference: TorchOps, tokens: int) -> None:
    qkv = random(tokens, (HEADS + 2 * KV_HEADS) * DIM)
    norms = random(DIM), random(DIM)
    turns = torch.rand(tokens, DIM // 2, device=CUDA) * 6
    angles = Angles(turns.cos(), turns.sin())
    slots = torch.randperm(64 * BLOCK, device=CUDA)[:tokens]
    caches = [torch.zeros(2, 64, BLOCK, KV_HEADS, DIM, dtype=HALF, device=CUDA) for _ in range(2)]
    wanted = reference.place(qkv.clone(), norms, angles, 1e-6, *caches[0], slots)
    found = ours.place(qkv, norms, angles, 1e-6, *caches[1], slots)
    wrong = max(error(found, wanted), error(caches[1], caches[0]))
    micros = timed([lambda: ours.place(qkv, norms, angles, 1e-6, *caches[1], slots)] * 8)
    bench.line(f"place x{tokens}", wrong, 5e-3, micros, moved=2 * qkv.nbytes)


def dense_products(bench: Bench) -> None:
    device = Device.of(CUDA)
    for rows, inputs in ((6144, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)):
        weights = [random(rows, inputs) for _ in range(max(2, (256 << 20) // (2 * rows * inputs)))]
        products = [DenseProduct(weight, None, device) for weight in weights]
        for tokens in (1, 4, 16):
            x = random(tokens, inputs)
            wanted = x.double() @ weights[0].double().T
            choices = [dense_product.Library()]
            choices += dense_product.GEMVS if tokens == 1 else dense_product.MATMULS
            for choice in choices:
                wrong = error(products[0].run(x, choice), wanted)
                micros = timed([lambda p=p, c=choice, y=x: p.run(y, c) for p in products * 2])
                chosen = "*" if products[0]._choices[tokens] == choice else " "
                name = f"{rows}x{inputs} M={tokens} {short(choice)}{chosen}"
                bench.line(name, wrong, 1e-2, micros, moved=2 * rows * inputs)
    head = DenseProduct(random(VOCAB, HIDDEN), None, device)
    x = random(1, HIDDEN)
    micros = timed([lambda: head(x)])
    bench.line(f"head M=1 {short(head._choices[1])}", 0.0, 0.0, micros, moved=head.bytes)


def short(choice: object) -> str:
    """Such as gemv(4,4)."""
    values = ",".join(str(value) for value in getattr(choice, "__dict__", {}).values())
    if not values:
        slots = getattr(type(choice), "__slots__", ())
        values = ",".join(str(getattr(choice, s)) for s in slots if s != "__weakref__")
    return f"{type(choice).__name__.lower()}({values})"


def packed_products(bench: Bench) -> None:
    """Those that files are made of by every kernel, and one of each other kind of layout."""
    device = Device.of(CUDA)
    for quant in (types.Q4_K, types.Q6_K, types.Q8_0):
        weight, copies = packed_weights(bench, quant, 8)
        products = [PackedProduct(planes, None, device) for planes in copies]
        for tokens in (1, 4, 16, 64):
            choice = products[0]._choices[tokens]
            choices = [choice]
            if tokens == 1:
                choices = [*packed_product.GEMVS, *packed_product.MATMULS]
            for one in choices:
                chosen = "*" if one == choice else ""
                packed_line(bench, f"{quant.name}{chosen}", weight, products, tokens, one)
    unmeasured = attrs.evolve(device, tuner=Tuner(torch.device("cpu")))
    for quant in (types.Q4_0, types.Q5_1, types.Q3_K, types.Q2_K, types.IQ4_XS):
        weight, copies = packed_weights(bench, quant, 2)
        products = [PackedProduct(planes, None, unmeasured) for planes in copies]
        packed_line(bench, quant.name, weight, products, 1, products[0]._choices[1])
        packed_line(bench, quant.name, weight, products, 4, packed_product.MATMULS[0])


def packed_weights(
    bench: Bench, quant: types.QuantType, count: int
) -> tuple[torch.Tensor, list[Planes]]:
    """A weight in fp32, and in planes so many times; unpacking it is checked."""
    packed = random_packed(quant, HIDDEN, HIDDEN).to(CUDA)
    weight = dequantize(packed, quant, torch.float32)
    copies = [Planes.of(packed, quant) for _ in range(count)]
    full = torch.full((HIDDEN, HIDDEN), float("nan"), dtype=HALF, device=CUDA)
    packed_product.unpack(copies[0], full)
    bench.line(f"unpack {quant.name}", error(full, weight), 5e-3)
    return weight, copies


def packed_line(
    bench: Bench,
    name: str,
    weight: torch.Tensor,
    products: list[PackedProduct],
    tokens: int,
    choice: packed_product.Choice,
) -> None:
    x = random(tokens, HIDDEN)
    wrong = error(products[0].run(x, choice), x.double() @ weight.double().T)
    micros = timed([lambda p=p: p.run(x, choice) for p in products])
    line = f"{name} M={tokens} {short(choice)}"
    bench.line(line, wrong, 1e-2, micros, moved=products[0].bytes)


def fp8_products(bench: Bench) -> None:
    device = Device.of(CUDA)
    packed = quantize(torch.randn(HIDDEN, HIDDEN, device=CUDA))
    values, scales = split(packed)
    weight = dequantize(packed, types.FP8, torch.float32).double()
    products = [Fp8Product(values.clone(), scales, None, device) for _ in range(8)]
    for tokens in (1, 8, 64, 512):
        x = random(tokens, HIDDEN)
        wrong = error(products[0](x), x.double() @ weight.T)
        micros = timed([lambda p=p, y=x: p(y) for p in products])
        bench.line(f"fp8 blocks M={tokens}", wrong, 1e-2, micros, moved=products[0].bytes)


def draws(bench: Bench) -> None:
    kinds = (("greedy", 0.0, 0, 1.0), ("plain", 1.0, 0, 1.0), ("cut", 0.6, 20, 0.95))
    for rows in (1, 32):
        for name, heat, k, p in kinds:
            draws_line(bench, name, random(rows, VOCAB).float() * 3, heat, k, p)


def draws_line(
    bench: Bench, name: str, logits: torch.Tensor, heat: float, k: int, p: float
) -> None:
    """The error is the share of rows whose token is another: one at a boundary may be."""
    ours, rows = TritonOps(CUDA), len(logits)
    column = torch.ones(rows, device=CUDA)
    params = DrawParams(
        temperature=column * heat,
        top_k=torch.full((rows,), k, dtype=torch.int32, device=CUDA),
        top_p=column * p,
        min_p=column * 0,
        uniform=torch.rand(rows, dtype=torch.float64, device=CUDA),
    )
    other = ours.draw(logits, params) != draw(logits, params)
    micros = timed([lambda: ours.draw(logits, params)])
    wrong = float(other.double().mean())
    bench.line(f"draw x{rows} {name}", wrong, 0.04, micros, moved=logits.nbytes)


CHECKS = (
    self_tested,
    small_operations,
    decode_attention,
    verify_attention,
    prefill_attention,
    draws,
    dense_products,
    packed_products,
    fp8_products,
)


def main() -> int:
    import triton

    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, triton {triton.__version__}")
    with torch.inference_mode():
        bench = Bench()
        print(
            f"copy {bench.ceilings.bandwidth / 1e12:.2f} TB/s (read and written), "
            f"matmul {bench.ceilings.matmul / 1e12:.0f} TFLOP/s"
        )
        named = sys.argv[1:]
        for check in CHECKS:
            if not named or check.__name__ in named:
                bench.try_out(check)
    print(f"{bench.failures} failures, {time.monotonic() - started:.0f} s")
    return min(bench.failures, 1)


if __name__ == "__main__":
    sys.exit(main())
