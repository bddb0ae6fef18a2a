"""Which set of kernels serves a model on a device."""

from __future__ import annotations

import logging
from functools import cache

import torch

from cortex.engine.kernels.native import load
from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.ops import Ops
from cortex.engine.kernels.torch_ops import TorchOps

logger = logging.getLogger("cortex.engine")


def choose(device: torch.device) -> Ops:
    """A set of its own for one model on *device*; nothing is allocated by this.

    The first choice of a device compiles its kernels and tries them out, which takes seconds; where
    they are missing or wrong, a warning says so once and torch's operations serve.
    """
    if device.type == "cpu":
        library = load.library()
        if library is not None:
            return NativeOps(library)
    if device.type == "cuda" and _triton_works(device):
        from cortex.engine.kernels.triton_ops import TritonOps

        return TritonOps(device)
    return TorchOps(device)


@cache
def _triton_works(device: torch.device) -> bool:
    try:
        from cortex.engine.kernels.triton.self_test import check

        check(device)
    except Exception as error:  # of an import, a compiler, a driver: whatever it is, torch is there
        logger.warning("no Triton kernels on %s, steps will be slow: %s", device, error)
        return False
    return True
