"""One tensor of a checkpoint, and where it lies. No torch."""

from __future__ import annotations

import attrs

from cortex.engine.quant.types import QuantType


@attrs.frozen
class TensorEntry:
    """``begin`` counts from the start of the file, ``size`` is in bytes.

    ``dtype`` is the file's own name for it; ``quant`` the packed format, where it is one that is
    computed with. ``shape`` is that of the weights, whatever they are packed into.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int
    quant: QuantType | None = None
