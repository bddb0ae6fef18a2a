"""Four-bit weights as AWQ and GPTQ store them, into packed rows or plain ones.

Both keep inputs in rows. A 32-bit word holds eight neighbours: in AWQ outputs, in the order 0, 2,
4, 6, 1, 3, 5, 7 from the lowest bits on, in GPTQ inputs, as they are. Zero points are packed along
the outputs, by AWQ in its order. A weight is ``(q - zero) * scale``.
"""

from __future__ import annotations

import attrs
import torch

from cortex.engine.quant.nearest import halves, nibbles
from cortex.engine.quant.types import Q4_1

_IN_ORDER = (0, 4, 8, 12, 16, 20, 24, 28)
_AWQ_ORDER = (0, 16, 4, 20, 8, 24, 12, 28)  # where the bits of outputs 0 to 7 are


@attrs.frozen(eq=False)
class Int4Weight:
    """Outputs of one weight: ``q`` uint8 ``(inputs, outputs)``, ``zeros`` uint8 and ``scales`` fp32
    ``(groups, outputs)``; ``groups`` int64 ``(inputs,)`` says to which an input belongs."""

    q: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor

    def dense(self) -> torch.Tensor:
        """fp32 ``(outputs, inputs)``."""
        shifted = self.q.float() - self.zeros.float()[self.groups]
        return (shifted * self.scales[self.groups]).t().contiguous()

    def packed(self) -> torch.Tensor:
        """Rows of Q4_1 ``(outputs, row bytes)``, for neighbours in groups of a multiple of 32.

        Its scale is the group's and its minimum ``-zero * scale``, each rounded to fp16: an error
        of at most 2^-11 of the 15 steps that the group spans. ValueError beyond fp16.
        """
        inputs, outputs = self.q.shape
        of_blocks = self.groups[:: Q4_1.block]
        scale = self.scales[of_blocks].t().reshape(-1, 1)
        zero = self.zeros[of_blocks].t().reshape(-1, 1)
        q = self.q.t().reshape(-1, Q4_1.block)
        rows = torch.cat((halves(scale), halves(-zero.float() * scale), nibbles(q)), -1)
        return rows.view(outputs, Q4_1.row_bytes(inputs))


def _fields(words: torch.Tensor, shifts: tuple[int, ...], dim: int) -> torch.Tensor:
    """The four bits at each of *shifts* of int32 ``(n, m)``, in a new dimension *dim*."""
    places = torch.tensor(shifts, dtype=torch.int32).view([-1 if d == dim else 1 for d in range(3)])
    return ((words.unsqueeze(dim) >> places) & 15).to(torch.uint8)


def along_outputs(words: torch.Tensor, *, awq: bool) -> torch.Tensor:
    """int32 ``(n, outputs / 8)`` to uint8 ``(n, outputs)``."""
    return _fields(words, _AWQ_ORDER if awq else _IN_ORDER, 2).flatten(1)


def along_inputs(words: torch.Tensor) -> torch.Tensor:
    """int32 ``(inputs / 8, n)`` to uint8 ``(inputs, n)``."""
    return _fields(words, _IN_ORDER, 1).flatten(0, 1)
