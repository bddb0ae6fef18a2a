"""Rows of the vocabulary."""

from __future__ import annotations

import torch

from cortex.engine.kernels.ops import Ops
from cortex.engine.layers.parameter import Parameter


class Embedding:
    """Token ids ``(tokens,) -> (tokens, hidden)`` in the parameter's compute dtype."""

    def __init__(self, ops: Ops, weight: Parameter) -> None:
        self.weight = weight
        self._ops = ops

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        return self._ops.embed(tokens, weight.data, weight.quant, weight.dtype)
