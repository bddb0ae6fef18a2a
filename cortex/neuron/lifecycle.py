"""The state of all models of this neuron: one owner, every change of state in here.

A load belongs to the lifecycle's nursery, not to who asked for it: joiners share its outcome, and
it goes on when all have left. Unloading a model that is being loaded cancels the load: the unload
succeeds, and whoever waits for the load gets `Conflict`. A load that failed stays visible for a
while as ``failed`` and is tried again by the next load. A model whose engine failed by itself is
loaded again in place; a device fault makes its models ``recovering`` until the process is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from cortex.errors import (
    Conflict,
    CortexError,
    DeviceLost,
    Draining,
    LoadCancelled,
    LoadFailed,
    ModelNotFound,
    Unavailable,
    clip,
)
from cortex.neuron.checkpoints import Checkpoints
from cortex.neuron.device_slot import DeviceSlot, FreeBytes
from cortex.neuron.loader import Loader, Sources
from cortex.neuron.loop_guard import LoopGuard
from cortex.neuron.model_text import ModelText, ReadText, TextShelf
from cortex.neuron.residents import LoadedModel, Resident
from cortex.service import logs
from cortex.wire import neuron as wire

if TYPE_CHECKING:
    from cortex.engine.engine import EngineStats

log = logs.get("neuron.lifecycle")

FAILED_SECONDS = 600.0  # how long a failed load stays visible
RESTART_RETRY = 5.0  # seconds a client is told to wait for the next process


def _unheard(model_id: str, error: CortexError | None, seconds: Mapping[str, float]) -> None:
    pass


@attrs.define(eq=False)
class Lifecycle:
    """Loads, serves and unloads models on *slots*.

    *device_free* tells what a device says is free. *on_landed* hears of each load that ended: its
    model, its error if it failed, and how long its stages took. *on_device_fault* is called once
    for each faulted device, when its models show ``recovering``. *clock* is monotonic, *wall* Unix
    seconds.
    """

    _slots: Sequence[DeviceSlot]
    _sources: Sources
    _checkpoints: Checkpoints
    _read_text: ReadText
    _device_free: FreeBytes = lambda _: None
    _drain_seconds: float = 30.0
    on_landed: Callable[[str, CortexError | None, Mapping[str, float]], None] = _unheard
    on_device_fault: Callable[[int, Exception], None] = lambda _, __: None
    _clock: Callable[[], float] = time.monotonic
    _wall: Callable[[], float] = time.time
    _residents: dict[str, Resident] = attrs.field(factory=dict, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _loader: Loader = attrs.field(init=False)
    _draining: bool = attrs.field(default=False, init=False)
    _faulted: bool = attrs.field(default=False, init=False)
    _paused: bool = attrs.field(default=False, init=False)
    _revivals: dict[str, LoopGuard] = attrs.field(factory=dict, init=False)
    _revived: dict[str, int] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        texts = TextShelf(self._read_text)
        self._loader = Loader(
            self._slots, self._sources, self._checkpoints, texts, self._device_free, self._wall
        )
        for slot in self._slots:
            slot.thread.on_fault = partial(self._device_faulted, slot)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there until cancelled; loads under way end with it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._draining = True

    # What there is

    def models(self) -> tuple[wire.Model, ...]:
        """Every model that is here, on its way here or away, or failed lately."""
        self._forget_old_failures()
        return tuple(self._residents[key].model() for key in sorted(self._residents))

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models that take requests now."""
        return tuple(
            resident.loaded
            for _, resident in sorted(self._residents.items())
            if resident.loaded is not None and resident.status == wire.LOADED
        )

    def loads(self) -> tuple[wire.ModelLoad, ...]:
        """What each loaded model is busy with, as of its engine's last step."""
        answers: list[wire.ModelLoad] = []
        for key in sorted(self._residents):
            loaded = self._residents[key].loaded
            if loaded is None:
                continue
            stats, speed = loaded.engine.stats(), loaded.engine.speed
            load = wire.ModelLoad(
                id=key, tok_s_prefill=_rounded(speed.prefill), tok_s_decode=_rounded(speed.decode)
            )
            if stats is not None:
                load = attrs.evolve(
                    load,
                    in_flight=stats.running,
                    queue_depth=stats.waiting,
                    kv_blocks_total=stats.kv_blocks_total,
                    kv_blocks_used=stats.kv_blocks_used,
                )
            answers.append(load)
        return tuple(answers)

    def engine_stats(self) -> tuple[tuple[str, EngineStats | None], ...]:
        """Each loaded model with its engine's last figures."""
        return tuple(
            (key, resident.loaded.engine.stats())
            for key, resident in sorted(self._residents.items())
            if resident.loaded is not None
        )

    def revivals(self) -> tuple[tuple[str, int], ...]:
        """How often each model was loaded again because its engine failed by itself."""
        return tuple(sorted(self._revived.items()))

    def estimate_errors(self) -> tuple[tuple[str, float], ...]:
        """By how much each loaded model's estimate was wrong, where that is known."""
        return tuple(
            (key, resident.loaded.estimate_error)
            for key, resident in sorted(self._residents.items())
            if resident.loaded is not None and resident.loaded.estimate_error is not None
        )

    def requests(self) -> tuple[wire.LoadRequest, ...]:
        """What to load again in a process that takes this one's place."""
        return tuple(
            resident.request
            for resident in self._residents.values()
            if resident.status in (wire.LOADED, wire.LOADING, wire.RECOVERING)
            and not resident.departing
        )

    @property
    def recovering(self) -> bool:
        """Whether some model is on its way back after a fault."""
        return (
            self._faulted
            or self._paused
            or any(resident.status == wire.RECOVERING for resident in self._residents.values())
        )

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Begin no load and no request from now on; what runs goes on."""
        self._draining = True

    def pause(self) -> None:
        """Begin nothing from now on, since this process is to be replaced. `Conflict` while a model
        is in use, or on its way here or away."""
        if self._draining:
            raise Draining("this neuron is shutting down")
        for resident in self._residents.values():
            moving = resident.departing or (resident.flying and not resident.landed.is_set())
            if resident.leases or moving:
                doing = "loading or unloading" if moving else "in use"
                raise Conflict(f"{resident.model_id} is {doing}")
        self._paused = True

    def expect(self, requests: Sequence[wire.LoadRequest]) -> None:
        """Show the models of *requests* as ``recovering`` until each is loaded again."""
        for request in requests:
            if request.model_id not in self._residents:
                self._residents[request.model_id] = Resident(
                    request, self._clock, status=wire.RECOVERING
                )

    @contextmanager
    def lease(self, model_id: str) -> Iterator[LoadedModel]:
        """The loaded model, kept from being unloaded until the block is left.

        `ModelNotFound` when it is not here; `ModelLoading`, `LoadFailed`, `Draining` or another
        `Unavailable` when it cannot be used now.
        """
        resident = self._residents.get(model_id)
        if resident is None:
            raise _not_here(model_id)
        self._check_open()
        with resident.lease() as loaded:
            yield loaded

    # Loading

    async def load(self, request: wire.LoadRequest) -> wire.Model:
        """Load a model, join its load, or find it loaded. Raises what the load failed with."""
        resident = self._ensure(request)
        await resident.landed.wait()
        return resident.outcome()

    def start_load(self, request: wire.LoadRequest) -> wire.Model:
        """Begin a load (or find one) and return its entry as it is now."""
        return self._ensure(request).model()

    async def estimate(self, request: wire.LoadRequest) -> wire.Estimate:
        """What loading *request* would take, from its headers and tokenizer files alone."""
        return await self._loader.estimate(request)

    async def text_of(self, spec: wire.LoadRequest | str) -> ModelText:
        """Tokenizer and template of a model, loaded or not; no weights are read.

        An id alone must be one that is here, for an id does not say where the files are.
        """
        model_id = spec if isinstance(spec, str) else spec.model_id
        resident = self._residents.get(model_id)
        if resident is not None and resident.text is not None:
            return resident.text
        if isinstance(spec, str):
            if resident is None:
                raise _not_here(model_id)
            spec = resident.request
        return await self._loader.text(spec)

    def _ensure(self, request: wire.LoadRequest) -> Resident:
        """The stay that *request* asks for, begun if there is none."""
        self._loader.check(request)
        self._check_open()
        current = self._residents.get(request.model_id)
        after: trio.Event | None = None
        status = wire.LOADING
        if current is not None and current.departing:
            after = current.gone
        elif current is not None and current.status != wire.FAILED:
            current.check_same(request)
            if current.flying or current.status == wire.LOADED:
                return current
            status = wire.RECOVERING  # it was expected, and this is the load that brings it back
        resident = Resident(request, self._clock, status=status)
        self._residents[request.model_id] = resident
        self._begin(resident, after)
        return resident

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("this neuron is shutting down")
        if self._paused:
            raise Unavailable("this neuron is restarting", retry_after=RESTART_RETRY)

    def _begin(self, resident: Resident, after: trio.Event | None = None) -> None:
        if self._nursery is None:
            raise Unavailable("this neuron is still starting")
        resident.flying = True
        self._nursery.start_soon(self._fly, resident, after, name=f"load {resident.model_id}")

    async def _fly(self, resident: Resident, after: trio.Event | None) -> None:
        """One load, to whatever end: ``landed`` is set and the state is true afterwards."""
        began = self._clock()
        error: CortexError | None = Draining("this neuron is shutting down")
        try:
            with resident.scope:
                if after is not None:
                    await after.wait()
                await self._loader.load(resident)
            error = None
            if resident.loaded is None:
                error = Conflict(f"the load of {resident.model_id} was cancelled by an unload")
        except CortexError as exc:
            error = exc
        except LoadCancelled as exc:
            error = Unavailable(f"the load of {resident.model_id} was cancelled")
            error.__cause__ = exc
        except Exception as exc:  # it is the end of the load, not of the neuron
            reason = clip(f"{type(exc).__name__}: {exc}", 300)
            error = LoadFailed(f"loading {resident.model_id} failed: {reason}")
            error.__cause__ = exc
        finally:
            self._land(resident, error, self._clock() - began)

    def _land(self, resident: Resident, error: CortexError | None, seconds: float) -> None:
        resident.error = error
        resident.opening = None
        fields = {"model": resident.model_id, "seconds": round(seconds, 2)}
        if error is None:
            resident.status = wire.LOADED
            if resident.loaded is not None:
                resident.loaded.engine.on_died = partial(self._engine_died, resident)
            log.info("loaded", **fields)
        elif isinstance(error, DeviceLost) and self._faulted:
            resident.status = wire.RECOVERING  # the next process tries again
        else:
            resident.status = wire.FAILED
            resident.failed_at = self._clock()
            if resident.departing:
                log.info("load cancelled", **fields)
            else:
                log.error("load failed", exc=error, **fields)
        if not resident.departing:
            self.on_landed(resident.model_id, error, resident.stage_seconds)
        resident.landed.set()

    # Unloading

    async def unload(self, model_id: str) -> None:
        """Let requests end (within the drain bound), then free the model; joiners share it."""
        resident = self._residents.get(model_id)
        if resident is None:
            raise _not_here(model_id)
        if not resident.departing:
            self._depart(resident)
        await resident.gone.wait()

    async def unload_all(self) -> None:
        """Free every device: the neuron is shutting down."""
        for resident in list(self._residents.values()):
            if not resident.departing:
                self._depart(resident)
        for resident in list(self._residents.values()):
            await resident.gone.wait()

    def _depart(self, resident: Resident) -> None:
        resident.departing = True
        if resident.status == wire.LOADED:
            resident.status = wire.UNLOADING
        if not resident.flying:  # expected back, but not here yet
            self._remove(resident)
            return
        if self._nursery is None:
            raise Unavailable("this neuron is still starting")
        self._nursery.start_soon(self._unload, resident, name=f"unload {resident.model_id}")

    async def _unload(self, resident: Resident) -> None:
        try:
            resident.scope.cancel("the model is being unloaded")
            await resident.landed.wait()
            if resident.loaded is not None:
                resident.status = wire.UNLOADING
                await self._close(resident, resident.loaded)
        finally:
            self._remove(resident)
            log.info("unloaded", model=resident.model_id)

    async def _close(self, resident: Resident, loaded: LoadedModel) -> None:
        with trio.move_on_after(self._drain_seconds):
            await resident.wait_idle()
        if resident.leases:
            log.warning("unloading a busy model", model=resident.model_id, leases=resident.leases)
        try:
            await loaded.engine.close(Unavailable(f"the model {resident.model_id} was unloaded"))
        except DeviceLost:
            log.warning("its device is lost", model=resident.model_id)
        except Exception as exc:  # it is not ours any more, however badly it went
            log.error("the engine did not close well", exc=exc, model=resident.model_id)

    def _remove(self, resident: Resident) -> None:
        if resident.reservation is not None:
            resident.reservation.release()
        if self._residents.get(resident.model_id) is resident:
            del self._residents[resident.model_id]
        resident.gone.set()

    # Faults

    def _engine_died(self, resident: Resident, error: Exception) -> None:
        """An engine failed by itself and is closed: load it again, unless it keeps doing so."""
        if resident.reservation is not None:
            resident.reservation.release()
        resident.loaded = None
        if self._residents.get(resident.model_id) is not resident or resident.departing:
            return
        guard = self._revivals.setdefault(resident.model_id, LoopGuard())
        if self._draining or not guard.allow(self._clock()):
            resident.error = LoadFailed(f"the engine of {resident.model_id} failed")
            resident.error.__cause__ = error
            resident.status, resident.failed_at = wire.FAILED, self._clock()
            return
        log.warning("reloading after a failure", model=resident.model_id)
        self._revived[resident.model_id] = self._revived.get(resident.model_id, 0) + 1
        again = Resident(resident.request, self._clock, status=wire.RECOVERING)
        self._residents[resident.model_id] = again
        self._begin(again)

    def device_lost(self, index: int, reason: str) -> None:
        """The device *index* has gone, as its health tells: it counts as faulted from now on."""
        for slot in self._slots:
            if slot.index == index:
                slot.thread.declare_lost(RuntimeError(reason))

    def _device_faulted(self, slot: DeviceSlot, error: Exception) -> None:
        self._faulted = True
        for resident in self._residents.values():
            if resident.slot is slot and resident.status == wire.LOADED:
                resident.status = wire.RECOVERING
        self.on_device_fault(slot.index, error)

    def _forget_old_failures(self) -> None:
        horizon = self._clock() - FAILED_SECONDS
        for key, resident in list(self._residents.items()):
            if resident.status == wire.FAILED and resident.failed_at < horizon:
                del self._residents[key]


def _rounded(speed: float | None) -> float | None:
    return None if speed is None else round(speed, 1)


def _not_here(model_id: str) -> ModelNotFound:
    return ModelNotFound(f"the model '{clip(model_id)}' is not loaded on this neuron")
