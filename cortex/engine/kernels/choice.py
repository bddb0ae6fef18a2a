"""Which set of kernels serves a model on a device."""

from __future__ import annotations

import torch

from cortex.engine.kernels.ops import Ops
from cortex.engine.kernels.torch_ops import TorchOps


def choose(device: torch.device) -> Ops:
    """A set of its own for one model on *device*; nothing is allocated by this."""
    return TorchOps(device)
