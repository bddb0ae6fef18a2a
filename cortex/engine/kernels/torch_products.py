"""Weights as torch multiplies by them: plain, or in oneDNN's blocks on a CPU."""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F

_PACKED_DTYPES = (torch.float32, torch.bfloat16)


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
