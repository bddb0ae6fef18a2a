"""A lifecycle on fake devices, with fake files and fake engines."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import trio
from fakes.engine import FakeCheckpoints, is_fake_fault

from cortex.neuron.device_slot import DeviceSlot
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.ledger import Ledger
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.model_text import ModelText
from cortex.wire import neuron as wire

MIB = 1 << 20


@attrs.define(eq=False)
class FakeSources:
    """`Sources` whose files are all there, in a directory called after the source.

    With ``gate`` a download stands still until it is set. ``errors`` are raised, one a call.
    """

    gate: trio.Event | None = None
    errors: list[Exception] = attrs.field(factory=list)
    calls: list[tuple[str, str]] = attrs.field(factory=list)
    quants: list[str | None] = attrs.field(factory=list)

    async def resolve(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: Callable[[str, int, int], None],
        files: Literal["all", "metadata"],
        quant: str | None = None,
    ) -> Path:
        self.calls.append((source or model_id, files))
        self.quants.append(quant)
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        if self.gate is not None:
            progress("download", 1, 4)
            await self.gate.wait()
        return Path("/fake") / (source or model_id).replace("/", "--")


@attrs.define(eq=False)
class TextReader:
    """Reads texts that hold nothing; with ``gate`` it stands still until that is set."""

    gate: threading.Event | None = None
    reads: list[Path] = attrs.field(factory=list)
    reading: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, directory: Path) -> ModelText:
        self.reads.append(directory)
        self.reading.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        nothing: Any = SimpleNamespace()
        return ModelText(nothing, nothing, nothing, tool_call=True)


def slot(index: int = 0, *, total: int = 64 * MIB, kind: str = "cpu") -> DeviceSlot:
    """A device with a thread that takes `fakes.engine.FakeDeviceFault` for a fault."""
    return DeviceSlot(
        wire.Device(index, f"fake {index}", kind=kind, vram_total_mb=total // MIB),
        DeviceThread(f"fake-dev-{index}", is_fault=is_fake_fault, grace=2.0),
        Ledger(index, total),
    )


@attrs.define(eq=False)
class House:
    """Everything a lifecycle needs, with handles on the fakes."""

    slots: tuple[DeviceSlot, ...] = attrs.field(factory=lambda: (slot(),))
    sources: FakeSources = attrs.field(factory=FakeSources)
    checkpoints: FakeCheckpoints = attrs.field(factory=FakeCheckpoints)
    read_text: TextReader = attrs.field(factory=TextReader)
    drain_seconds: float = 5.0
    faults: list[tuple[int, Exception]] = attrs.field(factory=list)
    now: float = 1000.0
    lifecycle: Lifecycle = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.lifecycle = Lifecycle(
            self.slots,
            self.sources,
            self.checkpoints,
            self.read_text,
            drain_seconds=self.drain_seconds,
            on_device_fault=lambda index, error: self.faults.append((index, error)),
            clock=lambda: self.now,
            wall=lambda: self.now,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Lifecycle]:
        """The lifecycle and its devices at work; twenty seconds at most."""
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for each in self.slots:
                    await nursery.start(each.thread.run)
                await nursery.start(self.lifecycle.run)
                yield self.lifecycle
                nursery.cancel_scope.cancel()

    def status(self, model_id: str) -> str | None:
        """How a model is, None when it is not here."""
        for model in self.lifecycle.models():
            if model.id == model_id:
                return model.status
        return None

    def used(self) -> int:
        return sum(each.ledger.used for each in self.slots)


def load_request(model_id: str = "org/a", **options: Any) -> wire.LoadRequest:
    return wire.LoadRequest(model_id, **options)
