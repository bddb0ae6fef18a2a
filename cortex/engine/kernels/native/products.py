"""Products with weights in the native layouts."""

from __future__ import annotations

from functools import partial

import torch

from cortex.engine.kernels.native.arena import Arena
from cortex.engine.kernels.native.library import Library
from cortex.engine.quant.types import QuantType

_ALIGNMENT = 64  # bytes
_DENSE = 30  # GGUF's number for bf16


class Memory:
    """Scratch that grows and is kept; what it held is gone when it is asked for again."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)
        self._start = 0
        self._size = 0

    def at_least(self, size: int) -> int:
        """The address of *size* bytes, aligned to a cache line; good while this object lives."""
        if size > self._size:
            self._held = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
            self._start = -(-self._held.data_ptr() // _ALIGNMENT) * _ALIGNMENT
            self._size = size
        return self._start


class NativeProduct:
    """``(tokens, inputs)`` times a weight whose layout is *laid*, to ``(tokens, rows)``."""

    def __init__(
        self,
        library: Library,
        memory: Memory,
        laid: torch.Tensor,
        kind: int,
        rows: int,
        inputs: int,
        bias: torch.Tensor | None,
    ) -> None:
        self._laid = laid
        self._bias = bias
        self._rows = rows
        self._memory = memory
        self._wanted = partial(library.product_memory, kind, inputs)
        self._sizes: dict[int, int] = {}
        address = None if bias is None else bias.data_ptr()
        self._run = partial(library.product, kind, rows, inputs, laid.data_ptr(), address)

    @property
    def bytes(self) -> int:
        return self._laid.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[0]
        if not x.is_contiguous():
            x = x.contiguous()
        size = self._sizes.get(tokens)
        if size is None:
            size = self._sizes[tokens] = self._wanted(tokens)
        y = torch.empty((tokens, self._rows), dtype=x.dtype)
        self._run(
            x.data_ptr(),
            y.data_ptr(),
            tokens,
            x.dtype is torch.bfloat16,
            self._memory.at_least(size),
            torch.get_num_threads(),
        )
        return y


def packed_product(
    library: Library,
    arena: Arena,
    memory: Memory,
    weight: torch.Tensor,
    quant: QuantType,
    bias: torch.Tensor | None,
) -> NativeProduct:
    """A packed *weight* for activations in bf16 or fp32, which *bias* is in, too.

    In bf16 activations are rounded to 8 bits, in blocks of 32; in fp32 the product is exact but for
    rounding. A row's result does not depend on the rows that come with it. ValueError for a format
    that is not one of GGUF's.
    """
    kind, rows = quant.gguf_id, weight.shape[0]
    if kind is None:
        raise ValueError(f"there are no kernels for {quant.name}")
    inputs = weight.shape[1] // quant.bytes * quant.block
    laid = arena.take(library.packed_bytes(kind, rows, inputs))
    weight = weight.contiguous()
    threads = torch.get_num_threads()
    library.pack(kind, rows, inputs, weight.data_ptr(), laid.data_ptr(), threads)
    return NativeProduct(library, memory, laid, kind, rows, inputs, bias)


def dense_product(
    library: Library,
    arena: Arena,
    memory: Memory,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> NativeProduct:
    """A bf16 *weight* for bf16 activations, where `Library.dense_bytes` is positive."""
    rows, inputs = weight.shape
    laid = arena.take(library.dense_bytes(rows, inputs))
    weight = weight.contiguous()
    threads = torch.get_num_threads()
    library.dense_pack(rows, inputs, weight.data_ptr(), laid.data_ptr(), threads)
    return NativeProduct(library, memory, laid, _DENSE, rows, inputs, bias)
