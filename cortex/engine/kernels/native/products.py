"""Products with packed weights in the native layout."""

from __future__ import annotations

import torch

from cortex.engine.kernels.native.arena import Arena
from cortex.engine.kernels.native.library import Library
from cortex.engine.quant.types import QuantType

_ALIGNMENT = 64  # bytes


class Memory:
    """Scratch that grows and is kept; what it held is gone when it is asked for again."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)
        self._start = 0

    def at_least(self, size: int) -> int:
        """The address of *size* bytes, aligned to a cache line."""
        if len(self._held) < size + _ALIGNMENT:
            self._held = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
            self._start = -(-self._held.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        return self._start


class PackedProduct:
    """``(tokens, inputs)`` times a packed weight, in bf16 or fp32.

    In bf16 activations are rounded to 8 bits, in blocks of 32; in fp32 the product is exact but for
    rounding. A row's result does not depend on the rows that come with it.
    """

    def __init__(
        self,
        library: Library,
        arena: Arena,
        memory: Memory,
        weight: torch.Tensor,
        quant: QuantType,
        bias: torch.Tensor | None,
    ) -> None:
        self._run = library.product
        self._memory_for = library.product_memory
        self._memory = memory
        self._rows = len(weight)
        self._inputs = weight.shape[1] // quant.bytes * quant.block
        self._kind = quant.gguf_id
        size = library.packed_bytes(self._kind, self._rows, self._inputs)
        self._tiles = arena.take(size)
        self._address = self._tiles.data_ptr()
        self._bias = bias
        library.pack(
            self._kind,
            self._rows,
            self._inputs,
            weight.contiguous().data_ptr(),
            self._address,
            torch.get_num_threads(),
        )

    @property
    def bytes(self) -> int:
        return self._tiles.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = len(x)
        x = x.contiguous()
        y = torch.empty((tokens, self._rows), dtype=x.dtype)
        bias = self._bias
        self._run(
            self._kind,
            self._rows,
            self._inputs,
            self._address,
            None if bias is None else bias.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            tokens,
            x.dtype is torch.bfloat16,
            self._memory.at_least(self._memory_for(self._inputs, tokens)),
            torch.get_num_threads(),
        )
        return y
