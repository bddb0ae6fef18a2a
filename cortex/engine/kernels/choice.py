"""Which set of kernels serves a model on a device."""

from __future__ import annotations

import torch

from cortex.engine.kernels.native import load
from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.ops import Ops
from cortex.engine.kernels.torch_ops import TorchOps


def choose(device: torch.device) -> Ops:
    """A set of its own for one model on *device*; nothing is allocated by this.

    The first one for a CPU may take the seconds that compiling its kernels takes.
    """
    if device.type == "cpu":
        library = load.library()
        if library is not None:
            return NativeOps(library)
    return TorchOps(device)
