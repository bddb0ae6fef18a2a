"""CUDA graphs: what a step does, recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cortex.engine.kernels.ops import Ops
from cortex.engine.static_decode import Capture


class GraphCapture:
    """Captures functions on one device into graphs that share their memory.

    What a graph leaves in its tensors is good until another one is launched.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Others use the device meanwhile, to ask how much memory is free.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay


def capture_for(device: torch.device, ops: Ops) -> Capture | None:
    """How programs are captured on *device*; None where steps run operation by operation."""
    if device.type == "cuda" and ops.capturable:
        return GraphCapture()
    return None
