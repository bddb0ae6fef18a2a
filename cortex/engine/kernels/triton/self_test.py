"""Whether what Triton compiles here runs and is right: tried out before a model relies on it."""

from __future__ import annotations

import torch

from cortex.engine.kernels.triton.norms import add_rms_norm


def check(device: torch.device) -> None:
    """Raises whatever keeps a small kernel from running, ArithmeticError where it errs."""
    x = torch.arange(-8, 8, dtype=torch.float32, device=device).view(2, 8)
    delta = torch.full_like(x, 0.5)
    weight = torch.arange(1, 9, dtype=torch.float32, device=device)
    total = x + delta
    wanted = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    found_total, found = add_rms_norm(x, delta, weight, 1e-6)
    if not (torch.equal(found_total, total) and torch.allclose(found, wanted, atol=1e-4)):
        raise ArithmeticError("a kernel's result is wrong")
