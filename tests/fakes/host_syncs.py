"""Sees what makes a host wait for its device, on a device that is never waited for."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostSyncs(TorchDispatchMode):
    """Notes the operations that make the host wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if name in self.FORBIDDEN:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def watch_copies(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the tensors that are copied to the host from here on."""
    copies: list[tuple[int, ...]] = []
    to = torch.Tensor.to

    def watched(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if args == ("cpu",):
            copies.append(tuple(tensor.shape))
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    return copies
