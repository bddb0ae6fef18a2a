"""The operations on an NVIDIA GPU: kernels in Triton, and torch's own where these are quickest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cortex.engine.kernels.ops import Angles, DrawParams, Product
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton.decode_attention import DecodeAttention
from cortex.engine.kernels.triton.dense_product import DenseProduct
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.fp8_product import Fp8Product
from cortex.engine.kernels.triton.norms import add_rms_norm, rms_norm
from cortex.engine.kernels.triton.packed_product import PackedProduct
from cortex.engine.kernels.triton.place import place
from cortex.engine.kernels.triton.planes import LAYOUTS, Planes
from cortex.engine.kernels.triton.prefill_attention import PrefillAttention, can_flash
from cortex.engine.kernels.triton.sampling import TritonSampler
from cortex.engine.kernels.triton.silu_mul import silu_mul
from cortex.engine.quant.fp8 import split
from cortex.engine.quant.types import FP8, QuantType

if TYPE_CHECKING:
    from cortex.engine.batch import Batch


class TritonOps:
    """`cortex.engine.kernels.ops.Ops`; decode can be captured.

    Products are measured when they are made, once a shape. Prompts are attended by torch's flash
    kernel, or where it cannot (in fp32, heads beyond 256) by the reference.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reference = TorchOps(device)
        self._shared = Device.of(device)
        self._decode = DecodeAttention(self._shared.scratch, self._shared.multiprocessors)
        self._prefill = PrefillAttention(tuner=self._shared.tuner)
        self._sampler = TritonSampler(self._shared.scratch)

    @property
    def capturable(self) -> bool:
        return True

    @property
    def scratch_bytes(self) -> int:
        """What is kept for results between launches so far."""
        return self._shared.scratch.bytes

    def copies(self, dtype: torch.dtype, quant: QuantType | None) -> bool:
        return quant is not None

    def product_bytes(
        self, rows: int, inputs: int, dtype: torch.dtype, quant: QuantType | None
    ) -> int:
        if quant is None:
            return rows * inputs * dtype.itemsize
        if quant == FP8:
            return rows * inputs + 4 * -(-rows // FP8.block) * (inputs // FP8.block)
        return LAYOUTS[quant].bytes(rows, inputs)

    def product(
        self, weight: torch.Tensor, quant: QuantType | None, bias: torch.Tensor | None
    ) -> Product:
        if quant is None:
            return DenseProduct(weight, bias, self._shared)
        if quant == FP8:
            return self._fp8_product(weight, bias)
        return PackedProduct(Planes.of(weight, quant), bias, self._shared)

    def embed(
        self,
        tokens: torch.Tensor,
        weight: torch.Tensor,
        quant: QuantType | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        return self._reference.embed(tokens, weight, quant, dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm(x, delta, weight, eps)

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
        return place(qkv, norms, angles.cos, angles.sin, eps, keys, values, slots)

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        rows, heads, dim = q.shape
        decodes = batch.decodes
        if decodes < rows and not can_flash(q.dtype, dim, window):
            return self._reference.attend(q, keys, values, batch, window)
        out = q.new_empty(rows, heads * dim)
        if decodes:
            self._decode(
                q[:decodes],
                keys,
                values,
                tables=batch.tables[:decodes],
                firsts=batch.firsts,
                lengths=batch.lengths,
                queries=1,
                window=window,
                out=out,
            )
        if decodes < rows:
            attended = self._prefill(q[decodes:], keys, values, batch, window)
            out[decodes:] = attended.reshape(rows - decodes, -1)
        return out

    def silu_mul(self, both: torch.Tensor) -> torch.Tensor:
        return silu_mul(both)

    def draw(self, logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
        return self._sampler.draw(logits, params)

    def begin_step(self) -> None:
        self._reference.begin_step()
        self._prefill.begin_step()

    def _fp8_product(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        try:
            values, scales = split(weight)
        except ValueError:  # projections were stacked that end within a block
            return self._reference.product(weight, FP8, bias)
        return Fp8Product(values, scales, bias, self._shared)
