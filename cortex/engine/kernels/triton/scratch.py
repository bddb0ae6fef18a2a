"""Memory for results that one launch leaves to the next, kept from step to step."""

from __future__ import annotations

import math

import torch


class Scratch:
    """Buffers by name, which grow and are never given back.

    A captured CUDA graph goes on writing where it was captured, so a buffer that became too small
    stays allocated beside the larger one. Launches of one stream may share a buffer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], list[torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for kept in self._buffers.values() for buffer in kept)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of *shape* with whatever an earlier user of *name* left in it."""
        elements = math.prod(shape)
        kept = self._buffers.setdefault((name, dtype), [])
        if not kept or kept[-1].numel() < elements:
            kept.append(torch.empty(elements, dtype=dtype, device=self._device))
        return kept[-1][:elements].view(shape)
