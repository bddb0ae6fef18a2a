"""A lifecycle with the real engine on the CPU, its models in one folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import trio

from cortex.engine.request import Event, Request, RequestFailed, SamplingParams, TokenEvent
from cortex.neuron.checkpoints import TorchCheckpoints, free_torch_memory, torch_threads
from cortex.neuron.device_slot import DeviceSlot
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.ledger import Ledger
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.model_text import ModelText
from cortex.wire import neuron as wire

MIB = 1 << 20


class _Folder:
    """`Sources` where every model lies in the same folder under its id."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def resolve(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: Any,
        files: Literal["all", "metadata"],
        quant: str | None = None,
    ) -> Path:
        await trio.lowlevel.checkpoint()
        return self.root / (source or model_id)


def _no_text(_: Path) -> ModelText:
    nothing: Any = SimpleNamespace()
    return ModelText(nothing, None, nothing)


@asynccontextmanager
async def neuron(
    root: Path, total: int = 256 * MIB, sources: Any = None
) -> AsyncIterator[Lifecycle]:
    slot = DeviceSlot(
        wire.Device(0, "cpu", "cpu"),
        DeviceThread("cpu-dev-0", torch_threads(1), free_memory=free_torch_memory),
        Ledger(0, total),
    )
    lifecycle = Lifecycle(
        (slot,), sources or _Folder(root), TorchCheckpoints(max_batch=8), _no_text
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(slot.thread.run)
            await nursery.start(lifecycle.run)
            yield lifecycle
            nursery.cancel_scope.cancel()


def request(name: str, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 12) -> Request:
    return Request(name, prompt, SamplingParams(temperature=0.0), max_tokens)


def token_of(event: Event) -> int:
    if isinstance(event, RequestFailed):
        raise event.error
    assert isinstance(event, TokenEvent)
    return event.token


async def generate(lifecycle: Lifecycle, model: str, name: str, max_tokens: int = 12) -> list[int]:
    """All tokens of one greedy request."""
    with lifecycle.lease(model) as loaded:
        async with loaded.engine.stream(request(name, max_tokens=max_tokens)) as stream:
            return [token_of(event) async for events in stream for event in events]
