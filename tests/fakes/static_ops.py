"""Operations that a graph could capture, the slow way, and a capture that runs them again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cortex.engine.batch import Batch
from cortex.engine.kernels.torch_ops import TorchOps


class StaticOps(TorchOps):
    """Attention in decode reads every block that a table shows, and masks by the lengths."""

    @property
    def capturable(self) -> bool:
        return True

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        if len(batch.chunks):  # built on the host
            return super().attend(q, keys, values, batch, window)
        rows, heads, dim = q.shape
        kv_heads = keys.shape[2]
        k = keys[batch.tables.long()].view(rows, -1, kv_heads, dim)
        v = values[batch.tables.long()].view(rows, -1, kv_heads, dim)
        k, v = (x.repeat_interleave(heads // kv_heads, 2) for x in (k, v))
        at = torch.arange(k.shape[1])
        hidden = at >= batch.lengths[:, None]
        if window is not None:
            hidden |= at < batch.lengths[:, None] - window
        scores = torch.einsum("rhd,rthd->rht", q.float(), k.float()) / dim**0.5
        shares = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        return torch.einsum("rht,rthd->rhd", shares, v.float()).to(q.dtype).reshape(rows, -1)


class EagerCapture:
    """Runs what it was given when it is asked again; counts both."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            function()

        return replay
