"""Weights as torch multiplies by them: plain, in oneDNN's blocks on a CPU, or packed."""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F

from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import QuantType

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
UNPACKED = 1 << 22  # weights of a packed product that are there in the compute dtype at a time


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN can lay a weight out in blocks: twice the speed of F.linear on a CPU."""
    return (
        device.type == "cpu"
        and dtype in _PACKED_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@attrs.frozen(eq=False)
class PlainProduct:
    """The weight as it came, which is not copied."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


@attrs.frozen(eq=False)
class BlockedProduct:
    """The weight in oneDNN's own layout: an opaque tensor of ``bytes``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    bytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return y


def dense_product(weight: torch.Tensor, bias: torch.Tensor | None) -> PlainProduct | BlockedProduct:
    """*weight* ``(outputs, inputs)`` in blocks where that can be, else as it is.

    Blocks are an optimisation: where oneDNN refuses a shape, the plain weight stays.
    """
    if not can_pack(weight.device, weight.dtype):
        return PlainProduct(weight, bias)
    try:
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        return PlainProduct(weight, bias)
    return BlockedProduct(blocked, bias, weight.nbytes)


@attrs.frozen(eq=False)
class PackedProduct:
    """Packed rows as they came, unpacked some at a time in each product: right, and not quick."""

    weight: torch.Tensor  # (outputs, row bytes) uint8
    quant: QuantType
    bias: torch.Tensor | None

    @property
    def bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        step = max(1, UNPACKED // x.shape[-1])
        parts = [
            F.linear(x, dequantize(w, self.quant, x.dtype)) for w in torch.split(self.weight, step)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias
