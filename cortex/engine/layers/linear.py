"""``y = x W^T + b``, with the weight laid out for the device once, at load."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cortex.engine.layers.parameter import Parameter

_PACKED_DTYPES = (torch.float32, torch.bfloat16)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN can lay the weight out in blocks: twice the speed of F.linear on a CPU."""
    return (
        device.type == "cpu"
        and dtype in _PACKED_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class Linear:
    """``(tokens, inputs) -> (tokens, outputs)``; the weight is ``(outputs, inputs)``."""

    def __init__(self, weight: Parameter, bias: Parameter | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._packed: torch.Tensor | None = None

    @property
    def packed(self) -> bool:
        return self._packed is not None

    def finish(self) -> None:
        """The parameters are loaded: pack the weight and let the plain one go.

        Packing is an optimisation: where oneDNN refuses a shape, the plain weight stays.
        """
        data = self.weight.data
        if not can_pack(data.device, data.dtype):
            return
        try:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(data, None)
        except RuntimeError as error:
            if "memory" in str(error):
                raise
            return
        self.weight.data = data.new_empty(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.data
        if self._packed is None:
            return F.linear(x, self.weight.data, bias)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return y
