"""``y = x W^T + b``, with the weight laid out for the device once, at load."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cortex.engine.kernels.ops import Ops, Product
from cortex.engine.layers.parameter import Parameter


class Linear:
    """``(tokens, inputs) -> (tokens, outputs)``.

    The weight is ``(outputs, inputs)``, in one piece or, where the projections that it is stacked
    from are kept in different formats, in as many as there are formats in a row.
    """

    def __init__(
        self, ops: Ops, weights: Sequence[Parameter], bias: Parameter | None = None
    ) -> None:
        self.weights = tuple(weights)
        self.bias = bias
        self._ops = ops
        self._products: list[Product] = []

    @property
    def parameters(self) -> list[Parameter]:
        return [*self.weights, *([] if self.bias is None else [self.bias])]

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(self._products)

    @property
    def bytes(self) -> int:
        """What it takes, or is going to take, on the device."""
        biases = 0 if self.bias is None else self.bias.bytes
        if self._products:
            return biases + sum(product.bytes for product in self._products)
        return biases + sum(
            self._ops.product_bytes(weight.shape[0], weight.shape[1], weight.dtype, weight.quant)
            for weight in self.weights
        )

    def finish(self) -> None:
        """The parameters are loaded: lay the weights out and let go of what was copied."""
        row = 0
        for weight in self.weights:
            rows = weight.shape[0]
            bias = None if self.bias is None else self.bias.data[row : row + rows]
            self._products.append(self._ops.product(weight.data, weight.quant, bias))
            if self._ops.copies(weight.dtype, weight.quant):
                weight.data = weight.data.new_empty(0)
            row += rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(self._products) == 1:
            return self._products[0](x)
        return torch.cat([product(x) for product in self._products], -1)
