"""What restricts the tokens of one completion, as the engine sees it. No text, no torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

# One bit a token, the first token's the lowest bit of the first word; set where it may come.
Words = npt.NDArray[np.int32]


class Constraint(Protocol):
    """The state of one completion's constraint: one object belongs to one request.

    One thread uses it at a time, though not always the same one. What `fill_mask` and `accept`
    raise fails that request alone.
    """

    @property
    def ended(self) -> bool:
        """The completion is whole: nothing may follow it."""
        ...

    def fill_mask(self, row: Words) -> None:
        """Write all of *row*, ``(ceil(vocabulary / 32),)``: which tokens may come next.

        An id that ends the completion is among them where the completion may end. Ids that the
        constraint does not know are forbidden.
        """
        ...

    def accept(self, token: int) -> None:
        """*token*, one that the last mask allowed, was drawn."""
        ...
