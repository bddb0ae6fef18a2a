"""A weight that is to come: its shape, its dtype, and the checkpoint tensors that make it."""

from __future__ import annotations

import math

import attrs
import torch


@attrs.define(eq=False)
class Parameter:
    """A tensor of ``shape``, stacked along dimension 0 from the checkpoint tensors ``sources``.

    ``sources`` are names with the number of rows each one brings; together they have ``shape[0]``
    rows. ``data`` is on the meta device until it is loaded.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[tuple[str, int], ...]
    data: torch.Tensor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.data = torch.empty(self.shape, dtype=self.dtype, device="meta")

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Parameter:
        """A parameter that is one tensor of the checkpoint."""
        return cls(shape, dtype, ((name, shape[0]),))

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize
