"""Random packed weights of every format: every bit of the integers, scales that are numbers."""

from __future__ import annotations

import numpy as np
import torch

from cortex.engine.quant.types import BY_NAME, QuantType

# Where fp16 scales and minima lie in a block.
HALVES = {
    "q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q2_k": (80, 82),
    "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,),
}  # fmt: skip
# How far a block's largest weight is from its scale: random blocks become about as large as 1.
SPREAD = {
    "q8_0": 127, "q4_0": 8, "q4_1": 15, "q5_0": 16, "q5_1": 31, "q2_k": 45, "q3_k": 128,
    "q4_k": 945, "q5_k": 1953, "q6_k": 4096, "iq4_nl": 127, "iq4_xs": 4064,
}  # fmt: skip


def random_packed(
    kind: QuantType, rows: int, inputs: int, *, seed: int = 0, size: float = 1.0
) -> torch.Tensor:
    """uint8 ``(rows, row bytes)``; weights are up to about *size*, scales of both signs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * inputs // kind.block, kind.bytes), dtype=np.uint8)
    for at in HALVES[kind.name]:
        scales = rng.uniform(0.3, 1.0, len(blocks)) * rng.choice((-1, 1), len(blocks))
        halves = (scales * size / SPREAD[kind.name]).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return torch.from_numpy(blocks.reshape(rows, kind.row_bytes(inputs)))


def set_halves(packed: torch.Tensor, kind: QuantType, value: float) -> None:
    """Make every scale and minimum of *packed* be *value*."""
    assert BY_NAME[kind.name] is kind
    blocks = packed.view(-1, kind.bytes)
    half = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
    for at in HALVES[kind.name]:
        blocks[:, at : at + 2] = half
