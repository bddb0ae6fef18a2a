"""The operations in C; what a kernel does not take goes to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cortex.engine.kernels.native.arena import Arena
from cortex.engine.kernels.native.library import Library
from cortex.engine.kernels.native.products import Memory, dense_product, packed_product
from cortex.engine.kernels.ops import Angles, Product
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.quant.types import TYPES, QuantType

if TYPE_CHECKING:
    from cortex.engine.batch import Batch

_DTYPES = (torch.bfloat16, torch.float32)
_MAX_DIM = 1024


class NativeOps(TorchOps):
    """`cortex.engine.kernels.ops.Ops` on a CPU, for activations in bf16 and fp32.

    As many threads are used as torch uses in the thread that calls. Dense weights are multiplied
    by here in bf16 on a processor that has instructions for it, else by oneDNN.
    """

    def __init__(self, library: Library) -> None:
        super().__init__(torch.device("cpu"))
        self._library = library
        self._arena = Arena()
        self._memory = Memory()

    def copies(self, dtype: torch.dtype, quant: QuantType | None) -> bool:
        return self._has(dtype, quant) or super().copies(dtype, quant)

    def product_bytes(
        self, rows: int, inputs: int, dtype: torch.dtype, quant: QuantType | None
    ) -> int:
        if not self._has(dtype, quant):
            return super().product_bytes(rows, inputs, dtype, quant)
        if quant is None:
            size: int = self._library.dense_bytes(rows, inputs)
        else:
            size = self._library.packed_bytes(quant.gguf_id, rows, inputs)
        return size

    def product(
        self, weight: torch.Tensor, quant: QuantType | None, bias: torch.Tensor | None
    ) -> Product:
        if not self._has(weight.dtype, quant):
            return super().product(weight, quant, bias)
        library, arena, memory = self._library, self._arena, self._memory
        if quant is None:
            return dense_product(library, arena, memory, weight, bias)
        return packed_product(library, arena, memory, weight, quant, bias)

    def _has(self, dtype: torch.dtype, quant: QuantType | None) -> bool:
        """Whether there are products for weights that are kept so."""
        if quant is None:
            return dtype is torch.bfloat16 and self._library.dense_bytes(1, 1) > 0
        return quant in TYPES

    def embed(
        self,
        tokens: torch.Tensor,
        weight: torch.Tensor,
        quant: QuantType | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        if quant not in TYPES or dtype not in _DTYPES:
            return super().embed(tokens, weight, quant, dtype)
        inputs = weight.shape[1] // quant.bytes * quant.block
        out = torch.empty((len(tokens), inputs), dtype=dtype)
        outside = self._library.embed(
            quant.gguf_id,
            len(weight),
            inputs,
            weight.data_ptr(),
            tokens.contiguous().data_ptr(),
            len(tokens),
            out.data_ptr(),
            dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        if outside:
            raise IndexError(f"a token is not one of {len(weight)}")
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not _plain(x, weight):
            return super().rms_norm(x, weight, eps)
        y = torch.empty_like(x)
        self._norm(x, None, weight, None, y, eps)
        return y

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not _plain(x, delta, weight):
            return super().add_rms_norm(x, delta, weight, eps)
        y = torch.empty_like(x)
        self._norm(x, delta, weight, x, y, eps)
        return x, y

    def _norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        total: torch.Tensor | None,
        y: torch.Tensor,
        eps: float,
    ) -> None:
        self._library.norm(
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            None if total is None else total.data_ptr(),
            y.data_ptr(),
            x.numel() // x.shape[-1],
            x.shape[-1],
            eps,
            x.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )

    def place(
        self,
        qkv: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        angles: Angles,
        eps: float,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        tokens = qkv.shape[0]
        kv_heads, dim = keys.shape[2:]
        if not _plain(qkv, keys, values, *(norms or ())) or dim > _MAX_DIM:
            return super().place(qkv, norms, angles, eps, keys, values, slots)
        heads = qkv.shape[1] // dim - 2 * kv_heads
        q = torch.empty((tokens, heads, dim), dtype=qkv.dtype)
        self._library.place(
            qkv.data_ptr(),
            None if norms is None else norms[0].data_ptr(),
            None if norms is None else norms[1].data_ptr(),
            angles.cos.data_ptr(),
            angles.sin.data_ptr(),
            eps,
            slots.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            q.data_ptr(),
            tokens,
            heads,
            kv_heads,
            dim,
            qkv.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return q

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        tokens, heads, dim = q.shape
        if not _plain(q, keys, values) or dim > _MAX_DIM:
            return super().attend(q, keys, values, batch, window)
        block, kv_heads = keys.shape[1:3]
        tables, decodes, longest = batch.tables, batch.decodes, batch.longest
        threads = torch.get_num_threads()
        size = self._library.attend_memory(heads, kv_heads, dim, decodes, longest, threads)
        out = torch.empty((tokens, heads * dim), dtype=q.dtype)
        self._library.attend(
            q.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            tables.data_ptr(),
            batch.firsts.data_ptr(),
            batch.lengths.data_ptr(),
            *tables.shape,
            decodes,
            longest,
            heads,
            kv_heads,
            dim,
            block,
            window or 0,
            dim**-0.5,
            q.dtype is torch.bfloat16,
            self._memory.at_least(size),
            threads,
        )
        return out

    def silu_mul(self, both: torch.Tensor) -> torch.Tensor:
        if not _plain(both):
            return super().silu_mul(both)
        rows, width = both.shape
        y = torch.empty((rows, width // 2), dtype=both.dtype)
        self._library.silu_mul(
            both.data_ptr(),
            y.data_ptr(),
            rows,
            width // 2,
            both.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return y


def _plain(*tensors: torch.Tensor) -> bool:
    """Whether a kernel takes them: contiguous, and of one dtype that there are kernels for."""
    dtype = tensors[0].dtype
    if dtype not in _DTYPES:
        return False
    for tensor in tensors:  # noqa: SIM110  quicker than all(), and this runs often in each layer
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            return False
    return True
