"""Rows of the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cortex.engine.layers.parameter import Parameter


class Embedding:
    """Token ids ``(tokens,) -> (tokens, hidden)``."""

    def __init__(self, weight: Parameter) -> None:
        self.weight = weight

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.weight.data)
