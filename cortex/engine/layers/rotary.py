"""Rotary positions, in halves: dimension i turns with dimension i + head_dim / 2. All in fp32."""

from __future__ import annotations

import math

import torch

from cortex.engine.kernels.ops import Angles
from cortex.engine.layers.parameter import Parameter
from cortex.engine.models.config import RopeConfig
from cortex.errors import CheckpointError

DIVISORS = "rope_freqs.weight"  # only GGUF files have it, where others state how it is computed


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    smooth = (rope.original / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _yarn(frequencies: torch.Tensor, rope: RopeConfig, dim: int) -> torch.Tensor:
    """NTK by parts: dimensions that turn often in the trained length are kept."""

    def dimension(rotations: float) -> float:
        span = math.log(rope.original / (rotations * 2 * math.pi))
        return dim * span / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(dim // 2, dtype=torch.float32)
    ramp = ((index - low) / (high - low)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _mscale(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _attention_factor(rope: RopeConfig) -> float:
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor)


class Rotary:
    """Cosines and sines of positions."""

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / (rope.theta**exponent)
        if rope.kind == "linear":
            frequencies = frequencies / rope.factor
        elif rope.kind == "llama3":
            frequencies = _llama3(frequencies, rope)
        elif rope.kind == "yarn":
            frequencies = _yarn(frequencies, rope, head_dim)
        self.frequencies = frequencies  # (head_dim / 2,)
        self.scale = _attention_factor(rope)
        self.divisors: Parameter | None = None
        if rope.factored:
            self.divisors = Parameter.of(DIVISORS, (head_dim // 2,), torch.float32)

    @property
    def parameters(self) -> list[Parameter]:
        return [] if self.divisors is None else [self.divisors]

    def place(self, device: torch.device) -> None:
        """The parameters are loaded, and from now on positions are on *device*."""
        self.frequencies = self.frequencies.to(device)
        if self.divisors is not None:
            if not (self.divisors.data > 0).all():
                raise CheckpointError(f"tensor '{DIVISORS}' has values that are not positive")
            self.frequencies = self.frequencies / self.divisors.data

    def angles(self, positions: torch.Tensor) -> Angles:
        """What turns a head at each of *positions* ``(tokens,)``."""
        angles = positions.float()[:, None] * self.frequencies
        return Angles(angles.cos() * self.scale, angles.sin() * self.scale)


def widen(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(tokens, dim / 2)`` cosines and sines as `turn` takes them, the sines signed."""
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """*x* ``(tokens, heads, dim)`` turned by widened angles ``(tokens, 1, dim)``, in fp32."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
