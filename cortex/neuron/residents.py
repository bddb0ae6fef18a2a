"""One model's stay on this neuron: from the wish to load it until it is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from cortex.errors import (
    Conflict,
    CortexError,
    LoadFailed,
    ModelLoading,
    Unavailable,
)
from cortex.neuron.device_slot import DeviceSlot
from cortex.neuron.engine_handle import EngineHandle
from cortex.neuron.jobs import Open
from cortex.neuron.ledger import Reservation, mib
from cortex.neuron.model_text import ModelText
from cortex.wire import neuron as wire

STARTING = ("resolve", 0, 0)
STAGES = {"kv": "cache"}  # the engine's words, where the wire has others


@attrs.define(eq=False)
class LoadedModel:
    """What serves requests. Contexts in tokens; ``created`` in Unix seconds."""

    model_id: str
    text: ModelText
    engine: EngineHandle
    max_context: int
    trained_context: int
    created: float
    estimate_error: float | None = None  # of the weights, as a part of what was measured


@attrs.frozen
class Facts:
    """What the checkpoint said of the model, by its name and headers."""

    place: Path  # a directory, or a GGUF file
    architecture: str | None
    dtype: str | None
    trained_context: int
    quant: str | None = None


@attrs.define(eq=False)
class Resident:
    """The state of one stay. The lifecycle writes it; ``landed`` is set when the load has ended."""

    request: wire.LoadRequest
    clock: Callable[[], float]
    status: str = wire.LOADING
    error: CortexError | None = None
    flying: bool = False  # a load task is, or was, under way
    departing: bool = False  # an unload task is under way
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    landed: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)
    slot: DeviceSlot | None = None
    opening: Open | None = None
    reservation: Reservation | None = None
    facts: Facts | None = None
    text: ModelText | None = None
    loaded: LoadedModel | None = None
    stage_seconds: dict[str, float] = attrs.field(factory=dict)  # of the load, once it has ended
    failed_at: float = 0.0
    _stage: tuple[str, int, int] = STARTING
    _stage_began: float = 0.0
    _leases: int = 0
    _idle: trio.Event | None = None

    @property
    def model_id(self) -> str:
        return self.request.model_id

    @property
    def quant(self) -> str | None:
        """The quantisation that was asked for, or that was found."""
        return self.request.quant if self.facts is None else self.facts.quant

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Note how far the load is; called by the source's download."""
        if stage != self._stage[0]:
            self._stage_began = self.clock()
        self._stage = (stage, done, total)

    @contextmanager
    def lease(self) -> Iterator[LoadedModel]:
        """Use the model; an unload waits for the end of the block. Raises why it cannot be used."""
        if self.loaded is None or self.status != wire.LOADED:
            raise self.refusal()
        self._leases += 1
        try:
            yield self.loaded
        finally:
            self._leases -= 1
            if self._leases == 0 and self._idle is not None:
                self._idle.set()

    @property
    def leases(self) -> int:
        return self._leases

    async def wait_idle(self) -> None:
        """Until nobody holds a lease."""
        while self._leases:
            self._idle = trio.Event()
            await self._idle.wait()

    def refusal(self) -> CortexError:
        """Why a request cannot be served now."""
        model_id = self.model_id
        if self.status == wire.LOADING:
            progress = self.progress()
            return ModelLoading(
                f"the model {model_id} is being loaded", extras={"loading": _loading(progress)}
            )
        if self.status == wire.FAILED:
            cause = "unknown" if self.error is None else self.error.message
            return LoadFailed(f"the model {model_id} could not be loaded: {cause}")
        return Unavailable(f"the model {model_id} is {self.status}")

    def outcome(self) -> wire.Model:
        """How the load ended: the model, or its error as one of the caller's own."""
        if self.error is not None:
            error = copy.copy(self.error)  # raised in several tasks, it would mix their tracebacks
            raise error from self.error.__cause__
        if self.status == wire.RECOVERING:
            raise self.refusal()
        return self.model()

    def progress(self) -> wire.Progress | None:
        """How far the load is; None when none is under way."""
        if self.landed.is_set() or not self.flying:
            return None
        if self.opening is not None and self.opening.progress is not None:
            self.report(*self.opening.progress)
        stage, done, total = self._stage
        stage = STAGES.get(stage, stage)
        eta = None
        if total and 0 < done <= total:
            eta = round((self.clock() - self._stage_began) * (total - done) / done, 1)
        return wire.Progress(stage, done, total or None, eta)

    def model(self) -> wire.Model:
        """The entry of this model in ``GET /models``."""
        facts, text, loaded = self.facts, self.text, self.loaded
        used = None
        if loaded is not None and self.status != wire.RECOVERING:
            used = mib(sum(loaded.engine.memory.values()))
        failed = self.status == wire.FAILED and self.error is not None
        return wire.Model(
            id=self.model_id,
            status=self.status,
            devices=() if self.slot is None else (self.slot.index,),
            vram_used_mb=used,
            source=self.request.source,
            quant=self.quant,
            dtype=self.request.dtype if facts is None else facts.dtype,
            architecture=None if facts is None else facts.architecture,
            capabilities=None if text is None else capabilities(text),
            limit=None if loaded is None else wire.Limit(context=loaded.max_context),
            tool_call=None if text is None else text.tool_call,
            tool_format=_format_name(text),
            reasoning=None if text is None else text.reasoning,
            progress=self.progress(),
            servable=self._servable(),
            error=self.error.message if failed and self.error is not None else None,
            loaded_at=None if loaded is None else loaded.created,
        )

    def _servable(self) -> wire.Servable:
        if self.status == wire.LOADED:
            return wire.Servable(ok=True)
        return wire.Servable(ok=False, reason=self.status)

    def check_same(self, request: wire.LoadRequest) -> None:
        """`Conflict` when *request* wants something else under this id than what is here."""
        mine = self.request
        known = {
            "source": mine.source or mine.model_id,
            "quant": self.quant,
            "dtype": mine.dtype,
            "tool_format": mine.tool_format or _format_name(self.text),
        }
        for name, value in known.items():
            wanted = getattr(request, name)
            if name == "quant":  # written in any case
                wanted, value = (text and text.upper() for text in (wanted, value))
            if wanted is not None and wanted != value:
                raise Conflict(
                    f"{self.model_id} is {self.status} with another {name}; unload it first",
                    param=name,
                )


def _format_name(text: ModelText | None) -> str | None:
    return None if text is None or text.tool_format is None else text.tool_format.name


def _loading(progress: wire.Progress | None) -> dict[str, object]:
    if progress is None:
        return {"stage": "resolve"}
    fields: dict[str, object] = {"stage": progress.stage}
    if progress.bytes_total:
        fields["progress"] = round(progress.bytes_done / progress.bytes_total, 3)
    if progress.eta_seconds is not None:
        fields["eta"] = progress.eta_seconds
    return fields


def capabilities(text: ModelText) -> tuple[str, ...]:
    """What the model can do, as far as its files tell."""
    names = ["text"]
    if text.template is not None:
        names.append("chat")
    if text.tool_call:
        names.append("tools")
    if text.reasoning:
        names.append("reasoning")
    if text.embedding.stated and text.embedding.refusal is None:
        names.append("embeddings")
    return tuple(names)
