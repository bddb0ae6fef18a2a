"""A weight that is to come: its shape, its format, and the checkpoint tensors that make it."""

from __future__ import annotations

import math

import attrs
import torch

from cortex.engine.quant.types import QuantType


@attrs.define(eq=False)
class Parameter:
    """A tensor of ``shape``, stacked along dimension 0 from the checkpoint tensors ``sources``.

    ``sources`` are names with the number of rows each one brings; together they have ``shape[0]``
    rows. ``dtype`` is what is computed in. With ``quant`` the values are kept packed: ``data`` is
    uint8 then, rows of whole blocks. ``data`` is on the meta device until it is loaded.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[tuple[str, int], ...]
    quant: QuantType | None = None
    data: torch.Tensor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.data = torch.empty(self.stored_shape, dtype=self.stored_dtype, device="meta")

    @classmethod
    def of(
        cls, name: str, shape: tuple[int, ...], dtype: torch.dtype, quant: QuantType | None = None
    ) -> Parameter:
        """A parameter that is one tensor of the checkpoint."""
        return cls(shape, dtype, ((name, shape[0]),), quant)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of ``data``."""
        if self.quant is None:
            return self.shape
        return (*self.shape[:-1], self.quant.row_bytes(self.shape[-1]))

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.dtype if self.quant is None else torch.uint8

    @property
    def bytes(self) -> int:
        return math.prod(self.stored_shape) * self.stored_dtype.itemsize
