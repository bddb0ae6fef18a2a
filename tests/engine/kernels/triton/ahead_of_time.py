"""Compiles for GPUs that are not there what the launches of a production shape would run.

``python ahead_of_time.py 90``: one line of JSON for every kernel. Launches are made as ever, at the
shapes of an 8B model, on tensors without memory, and caught where triton would compile and run
them.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from cortex.engine.kernels.ops import DrawParams
from cortex.engine.kernels.triton import dense_product, packed_product, sampling
from cortex.engine.kernels.triton.decode_attention import DecodeAttention
from cortex.engine.kernels.triton.dense_product import DenseProduct
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.fp8_product import Fp8Product
from cortex.engine.kernels.triton.norms import add_rms_norm, rms_norm
from cortex.engine.kernels.triton.packed_product import PackedProduct
from cortex.engine.kernels.triton.place import place
from cortex.engine.kernels.triton.planes import LAYOUTS, Planes
from cortex.engine.kernels.triton.prefill_attention import Chunks, gather
from cortex.engine.kernels.triton.silu_mul import silu_mul
from cortex.engine.quant import types
from cortex.engine.quant.types import QuantType

OPTIONS = ("num_warps", "num_stages")
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
ALIGNED = [["tt.divisibility", 16]]


class Launches:
    """What would be compiled: sources and options, each once, in order."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], tuple[JITFunction, dict, dict, dict, dict]] = {}

    def catch(self, kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
        signature: dict[str, str] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}
        for number, (parameter, value) in enumerate(
            zip(kernel.params, bound.values(), strict=True)
        ):
            signature[parameter.name], aligned = self._kind(parameter.is_constexpr, value)
            if signature[parameter.name] == "constexpr":
                constants[number,] = value
            elif aligned:
                attributes[number,] = ALIGNED
        key = (kernel.fn.__name__, *map(str, (signature, constants, attributes, options)))
        self.found[key] = (kernel, signature, constants, attributes, options)

    @staticmethod
    def _kind(constant: bool, value: Any) -> tuple[str, bool]:
        """The type that triton would infer, and whether it would see a multiple of 16."""
        if constant or (isinstance(value, int) and value == 1):
            return "constexpr", False
        if isinstance(value, torch.Tensor):
            return POINTERS[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
        if isinstance(value, float):
            return "fp32", False
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0


def record() -> Launches:
    """From now on launches are caught."""
    launches = Launches()

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.catch(kernel, args, dict(kwargs))

    JITFunction.run = run
    return launches


def compiled(launches: Launches, architecture: int) -> Iterator[dict[str, Any]]:
    for kernel, signature, constants, attributes, options in launches.found.values():
        source = ASTSource(kernel, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        ptx = made.asm["ptx"]
        yield {
            "kernel": kernel.fn.__name__,
            "constants": {kernel.arg_names[at]: value for (at,), value in constants.items()},
            "shared": made.metadata.shared,
            "async_copies": len(re.findall(r"cp\.async\.c[ag]\.", ptx)),
            "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        }


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attend(device: Device, *, batch: int, dim: int, window: int | None = None) -> None:
    DecodeAttention(device.scratch, device.multiprocessors)(
        tensor(batch, 32, dim),
        *(tensor(1000, 64, 8, dim) for _ in range(2)),
        tables=tensor(batch, 512, dtype=torch.int32),
        firsts=tensor(batch + 1, dtype=torch.int32),
        lengths=tensor(batch, dtype=torch.int32),
        queries=1,
        window=window,
        out=tensor(batch, 32 * dim),
    )


def attention(device: Device, *, full: bool) -> None:
    attend(device, batch=1, dim=128)
    attend(device, batch=8, dim=256)
    if full:
        attend(device, batch=256, dim=128)
        attend(device, batch=8, dim=128, window=4096)
        attend(device, batch=8, dim=80)


def gathering() -> None:
    ints = {"dtype": torch.int32}
    chunks = Chunks(
        tensor(4, 512, **ints),
        *(tensor(n, **ints) for n in (4, 5, 5)),
        512,
        999,
        3000,
        run=None,
        fresh=False,
    )
    gather(tensor(1000, 64, 8, 128), tensor(1000, 64, 8, 128), chunks)


def small() -> None:
    x, weight, angle = tensor(4, 4096), tensor(4096), tensor(4, 64, dtype=torch.float32)
    rms_norm(x, weight, 1e-6)
    add_rms_norm(x, x, weight, 1e-6)
    silu_mul(tensor(4, 2 * 12288))
    caches = tensor(1000, 64, 8, 128), tensor(1000, 64, 8, 128)
    norms, slots = (tensor(128), tensor(128)), tensor(4, dtype=torch.int64)
    place(tensor(4, 48 * 128), norms, angle, angle, 1e-6, *caches, slots)


def dense(device: Device, *, full: bool) -> None:
    product = DenseProduct(tensor(4096, 4096), None, device)
    for gemv in dense_product.GEMVS if full else dense_product.GEMVS[:1]:
        product.run(tensor(1, 4096), gemv)
    for matmul in dense_product.MATMULS if full else dense_product.MATMULS[:1]:
        product.run(tensor(16, 4096), matmul)


def fp8(device: Device) -> None:
    scales = tensor(32, 32, dtype=torch.float32)
    product = Fp8Product(tensor(4096, 4096, dtype=torch.uint8), scales, None, device)
    for tokens in (1, 8, 64, 100):
        product(tensor(tokens, 4096))


def planes(quant: QuantType) -> Planes:
    layout, rows, inputs = LAYOUTS[quant], 4096, 4096
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    scales = tensor(rows, inputs // layout.group, dtype=torch.float16)
    return Planes(
        rows=rows,
        inputs=inputs,
        layout=layout,
        low=tensor(rows, inputs // 8, dtype=words[layout.low]),
        high=tensor(rows, inputs // 8, dtype=words[layout.high]) if layout.high else None,
        scales=scales,
        offsets=scales if layout.offsets else None,
        table=tensor(16, dtype=torch.float32) if layout.table else None,
    )


def packed(device: Device, *, full: bool) -> None:
    for quant in types.TYPES if full else (types.Q4_K,):
        product = PackedProduct(planes(quant), None, device)
        often = full and quant in (types.Q4_K, types.Q6_K)
        if not product.planes.layout.table:
            for gemv in packed_product.GEMVS if often else packed_product.GEMVS[:1]:
                product.run(tensor(1, 4096), gemv)
        for matmul in packed_product.MATMULS if often else packed_product.MATMULS[:1]:
            product.run(tensor(8, 4096), matmul)
        if often:
            product.run(tensor(64, 4096), packed_product.MATMULS[0])
            product.run(tensor(100, 4096), packed_product.Unpack())


def drawing(device: Device) -> None:
    """Three rounds: the others are compiled like the third."""
    sampling.ROUNDS = 3
    column = tensor(8, dtype=torch.float32)
    numbers, limits = tensor(8, dtype=torch.float64), tensor(8, dtype=torch.int32)
    params = DrawParams(column, limits, column, column, numbers)
    sampler = sampling.TritonSampler(device.scratch)
    sampler.draw(tensor(8, 151936, dtype=torch.float32), params)


def main() -> None:
    """For sm_90 all there is, for the others what every model needs."""
    launches = record()
    device = attrs.evolve(Device.of(torch.device("meta")), multiprocessors=132)
    architecture = int(sys.argv[1])
    full = architecture == 90
    attention(device, full=full)
    small()
    dense(device, full=full)
    packed(device, full=full)
    drawing(device)
    if full:
        gathering()
        fp8(device)
    for line in compiled(launches, architecture):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
