"""From the hidden states of a prompt's chunks to its one vector. No torch.

A step gives one row for a chunk of a prompt that is to be embedded: the sum of the chunk's states,
or that of the prompt's last token. Rows add up on the host, so that nothing is kept on the device.
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from cortex.engine.request import Pooling

Row = npt.NDArray[np.float64]


@attrs.define(eq=False)
class RunningPool:
    """What has been pooled of one prompt so far."""

    _total: Row | None = None

    def add(self, row: Row, start: int) -> None:
        """Take the ``(hidden,)`` *row* of the chunk that begins at token *start*, in order.

        A chunk at 0 begins anew: its prompt was preempted, and is computed again.
        """
        self._total = row if self._total is None or start == 0 else self._total + row

    def vector(self, pooling: Pooling, tokens: int) -> npt.NDArray[np.float32]:
        """The ``(hidden,)`` embedding of the *tokens* that were added. It may not be finite."""
        assert self._total is not None
        pooled = self._total / tokens if pooling is Pooling.MEAN else self._total
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at what came of it
            return pooled.astype(np.float32)
