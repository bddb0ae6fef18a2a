"""The operations in plain torch, for every device: the reference, and what others fall back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from cortex.engine.kernels.ops import Angles, DrawParams, Product
from cortex.engine.kernels.torch_draw import draw
from cortex.engine.kernels.torch_products import PackedProduct, can_pack, dense_product
from cortex.engine.layers.attention import Attention, Gatherer
from cortex.engine.layers.norm import rms_norm
from cortex.engine.layers.rotary import turn, widen
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import QuantType

if TYPE_CHECKING:
    from cortex.engine.batch import Batch


class TorchOps:
    """`cortex.engine.kernels.ops.Ops` out of torch's own operations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._attention = Attention(Gatherer())
        self._angles: Angles | None = None
        self._wide: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def capturable(self) -> bool:
        return False  # attention is planned for the lengths of a batch

    def copies(self, dtype: torch.dtype, quant: QuantType | None) -> bool:
        return quant is None and can_pack(self.device, dtype)

    def product_bytes(
        self, rows: int, inputs: int, dtype: torch.dtype, quant: QuantType | None
    ) -> int:
        return rows * (inputs * dtype.itemsize if quant is None else quant.row_bytes(inputs))

    def product(
        self, weight: torch.Tensor, quant: QuantType | None, bias: torch.Tensor | None
    ) -> Product:
        if quant is not None:
            return PackedProduct(weight, quant, bias)
        return dense_product(weight, bias)

    def embed(
        self,
        tokens: torch.Tensor,
        weight: torch.Tensor,
        quant: QuantType | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows = F.embedding(tokens, weight)
        return rows.to(dtype) if quant is None else dequantize(rows, quant, dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + delta
        return total, rms_norm(total, weight, eps)

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
        kv_heads, dim = keys.shape[2:]
        split = qkv.view(len(qkv), -1, dim)
        heads = split.shape[1] - 2 * kv_heads
        qk, v = split[:, : heads + kv_heads], split[:, heads + kv_heads :]
        if norms is not None:
            qk = F.rms_norm(qk, (dim,), None, eps)
            qk[:, :heads].mul_(norms[0])
            qk[:, heads:].mul_(norms[1])
        qk = turn(qk, *self._turning(angles))
        keys.view(-1, kv_heads, dim).index_copy_(0, slots, qk[:, heads:])
        values.view(-1, kv_heads, dim).index_copy_(0, slots, v)
        return qk[:, :heads]

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        return self._attention(q, keys, values, batch.view(window))

    def silu_mul(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    def draw(self, logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
        return draw(logits, params)

    def begin_step(self) -> None:
        self._attention.begin_step()

    def _turning(self, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """*angles* as `turn` takes them, made once for all layers."""
        if self._wide is None or self._angles is not angles:
            self._angles, self._wide = angles, widen(angles.cos, angles.sin)
        return self._wide
