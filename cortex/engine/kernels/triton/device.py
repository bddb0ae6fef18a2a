"""What the launches of one model share."""

from __future__ import annotations

import attrs
import torch

from cortex.engine.kernels.triton.scratch import Scratch
from cortex.engine.kernels.triton.tuning import Tuner

_NO_GPU = 4  # multiprocessors to cut work for where kernels are interpreted


@attrs.frozen(eq=False)
class Device:
    """``multiprocessors`` is how many programs run at once at the least."""

    device: torch.device
    multiprocessors: int
    scratch: Scratch
    tuner: Tuner

    @classmethod
    def of(cls, device: torch.device) -> Device:
        count = _NO_GPU
        if device.type == "cuda":
            count = torch.cuda.get_device_properties(device).multi_processor_count
        return cls(device, count, Scratch(device), Tuner(device))
