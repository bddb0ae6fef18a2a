"""Root-mean-square normalisation, computed in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """*x* over the root of its mean square along the last dimension, times *weight*.

    The quotient is rounded to the dtype of *x* before the weight, as Llama and Qwen do.
    """
    return F.rms_norm(x, (x.shape[-1],), None, eps) * weight
