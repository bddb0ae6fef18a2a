"""How a model gets onto a device: files, text, memory, engine. It keeps no state of models."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import attrs
import trio

from cortex.errors import UnsupportedLoad, clip
from cortex.neuron.checkpoints import Checkpoints, LoadPlan, Room, Wish
from cortex.neuron.device_slot import DeviceSlot, FreeBytes, candidates, freest
from cortex.neuron.engine_handle import EngineHandle
from cortex.neuron.gguf_choice import label_of
from cortex.neuron.jobs import (
    Close,
    DrivenEngine,
    IsCancelled,
    Open,
    OpenedEngine,
    ReportProgress,
)
from cortex.neuron.ledger import Reservation, mib
from cortex.neuron.model_place import is_gguf
from cortex.neuron.model_text import ModelText, TextShelf
from cortex.neuron.residents import Facts, LoadedModel, Resident, capabilities
from cortex.neuron.stage_times import StageTimes
from cortex.service import logs
from cortex.text.tools.formats import BY_NAME, ToolFormat
from cortex.wire import neuron as wire

log = logs.get("neuron.load")

HARNESSES = ("torch", "candle")  # the original's files name candle; both mean this engine
DTYPES = ("float32", "bfloat16")

TOLERANCE = 0.05  # of an estimate
NOISE = 64 << 20  # bytes; what a process's other threads may allocate during a load

Files = Literal["all", "metadata"]


class Sources(Protocol):
    """Where models' files come from (`cortex.neuron.sources`)."""

    async def resolve(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: ReportProgress,
        files: Files,
        quant: str | None = None,
    ) -> Path:
        """The directory with the files, or the GGUF file that *quant* names; ``metadata`` leaves
        the weights out."""
        ...


def check_options(request: wire.LoadRequest) -> None:
    """Raise `UnsupportedLoad` for what this build cannot do, before anything is begun."""
    if request.harness is not None and request.harness not in HARNESSES:
        raise UnsupportedLoad(
            f"there is no harness '{clip(request.harness)}'; this neuron has torch",
            param="harness",
        )
    if request.tensor_parallel is not None and request.tensor_parallel > 1:
        raise UnsupportedLoad(
            "tensor parallelism is not supported by this build; tensor_parallel must be 1",
            param="tensor_parallel",
        )
    _tool_format(request)


@attrs.define(eq=False)
class Loader:
    """Brings models onto *slots*. *device_free* tells what a device says is free."""

    slots: Sequence[DeviceSlot]
    _sources: Sources
    _checkpoints: Checkpoints
    _texts: TextShelf
    _device_free: FreeBytes
    _wall: Callable[[], float] = time.time
    _keys: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    # One load at a time is given memory, since its plan takes a share of what is free.
    _allotting: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def check(self, request: wire.LoadRequest) -> None:
        """Raise what is wrong with *request* by itself: options, devices."""
        check_options(request)
        candidates(self.slots, request.devices)

    async def load(self, resident: Resident) -> None:
        """Load *resident*'s model; when this returns ``resident.loaded`` can serve.

        Failed or cancelled, at whatever point, it holds neither memory nor an engine.
        """
        request = resident.request
        log.info("loading", model=request.model_id, source=request.source or request.model_id)
        times = StageTimes(resident.clock)

        def report(stage: str, done: int, total: int) -> None:
            times.enter(stage)
            resident.report(stage, done, total)

        times.enter("resolve")
        place = await self._resolve(request, "all", report)
        times.enter("text")
        text = await self._text(request, place)
        times.enter("plan")
        slot, plan, reservation = await self._allot(request, place)
        with reservation:
            resident.slot, resident.text = slot, text
            resident.facts = Facts(
                place,
                plan.architecture,
                plan.dtype,
                plan.trained_context,
                _quant(request, place, plan),
            )
            times.end()
            key, opened = await self._open(resident, slot, place, plan)
            # No checkpoint from here on: what is open is either here or closed.
            reservation.settle({**plan.rows, **opened.memory})
        resident.reservation = reservation
        assert resident.opening is not None
        resident.stage_seconds = {**times.seconds, **resident.opening.stage_seconds}
        resident.loaded = LoadedModel(
            model_id=request.model_id,
            text=text,
            engine=EngineHandle(slot.thread, key, opened),
            max_context=opened.max_context,
            trained_context=plan.trained_context,
            created=self._wall(),
            estimate_error=_reconcile(request.model_id, plan.rows["weights"], opened),
        )

    async def estimate(self, request: wire.LoadRequest) -> wire.Estimate:
        """What loading *request* would take, from its headers and tokenizer files alone."""
        check_options(request)
        slots = candidates(self.slots, request.devices)
        place = await self._resolve(request, "metadata", _unheard)
        text = await self._text(request, place)
        _, plan = await self._plan(request, place, slots)
        return wire.Estimate(
            model_id=request.model_id,
            rows=plan.rows,
            total_bytes=plan.total,
            context=plan.context,
            trained_context=plan.trained_context,
            kv_bytes_per_token=plan.kv_bytes_per_token,
            architecture=plan.architecture,
            dtype=plan.dtype,
            capabilities=capabilities(text),
            tool_call=text.tool_call,
            reasoning=text.reasoning,
            parameters=plan.parameters,
            quant=_quant(request, place, plan),
        )

    async def text(self, request: wire.LoadRequest) -> ModelText:
        """Tokenizer and template; no weights are read."""
        return await self._text(request, await self._resolve(request, "metadata", _unheard))

    async def _text(self, request: wire.LoadRequest, place: Path) -> ModelText:
        tool_format = _tool_format(request)
        text = await self._texts.text(place)
        return text if tool_format is None else text.writing(tool_format)

    async def _resolve(
        self, request: wire.LoadRequest, files: Files, progress: ReportProgress
    ) -> Path:
        return await self._sources.resolve(
            request.source,
            request.model_id,
            progress=progress,
            files=files,
            quant=request.quant,
        )

    async def _allot(
        self, request: wire.LoadRequest, place: Path
    ) -> tuple[DeviceSlot, LoadPlan, Reservation]:
        """A device, a plan for it, and the memory."""
        async with self._allotting:
            slots = candidates(self.slots, request.devices)
            slot, plan = await self._plan(request, place, slots)
            free = self._device_free(slot.index)
            return slot, plan, slot.ledger.reserve(request.model_id, plan.rows, device_free=free)

    async def _plan(
        self, request: wire.LoadRequest, place: Path, slots: Sequence[DeviceSlot]
    ) -> tuple[DeviceSlot, LoadPlan]:
        """The freest of *slots* and what the model takes there."""
        slot, free = freest(slots, self._device_free)
        room = Room(slot.torch_name, slot.device.kind, slot.ledger.total, free)
        plan = await trio.to_thread.run_sync(
            self._checkpoints.plan, place, _wish(request, place), room, abandon_on_cancel=True
        )
        return slot, plan

    async def _open(
        self, resident: Resident, slot: DeviceSlot, place: Path, plan: LoadPlan
    ) -> tuple[int, OpenedEngine]:
        """Open the engine on its device; cancelled, it stops at the next shard."""
        key = next(self._keys)
        wish = _wish(resident.request, place)

        def open_on_device(progress: ReportProgress, cancelled: IsCancelled) -> DrivenEngine:
            return self._checkpoints.open(place, wish, plan, slot.torch_name, progress, cancelled)

        resident.opening = Open(key, open_on_device)
        try:
            opened: OpenedEngine = await slot.thread.ask(resident.opening, cancel_when_left=True)
        except BaseException:
            # It may have opened just as we left. Jobs keep their order, so this comes after it.
            slot.thread.submit(Close(key))
            raise
        return key, opened


def _reconcile(model_id: str, estimated: int, opened: OpenedEngine) -> float | None:
    """By how much the estimate of the weights was above what was measured, as a part of that."""
    measured = opened.measured_weights
    if not measured:
        return None
    error = (estimated - measured) / measured
    if abs(error) > TOLERANCE and abs(estimated - measured) > NOISE:
        log.warning(
            "weights estimated wrong",
            model=model_id,
            estimated_mb=mib(estimated),
            measured_mb=mib(measured),
            error=f"{error:+.1%}",
        )
    return error


def _wish(request: wire.LoadRequest, place: Path) -> Wish:
    quant = None if is_gguf(place) else request.quant  # else it has been heeded already
    return Wish(dtype=request.dtype, context=request.context, quant=quant)


def _quant(request: wire.LoadRequest, place: Path, plan: LoadPlan) -> str | None:
    """What a GGUF file is called, else what was asked for, else what most weights are kept in."""
    named = label_of(place.name) if is_gguf(place) else ""
    return named or request.quant or plan.quant


def _tool_format(request: wire.LoadRequest) -> ToolFormat | None:
    """The format that *request* names; None where it leaves that to the chat template."""
    name = request.tool_format
    if name is None:
        return None
    if name not in BY_NAME:
        raise UnsupportedLoad(
            f"there is no tool format '{clip(name)}'; known are {', '.join(BY_NAME)}",
            param="tool_format",
        )
    return BY_NAME[name]


def _unheard(stage: str, done: int, total: int) -> None:
    """Nobody waits for the progress of reading metadata."""
