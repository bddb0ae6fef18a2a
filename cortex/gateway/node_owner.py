"""The one owner of what is loaded and unloaded on a neuron.

Each load, unload and restart claims the devices it is for, so that there is one at a time on each:
no two loads count on the same memory, and nothing is evicted twice. A claim is made in the same
step as the decision it carries out, and given back whatever becomes of it. Models that are to leave
are closed to newcomers from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import attrs
import trio

from cortex.errors import CortexError, ModelNotFound, UpstreamError
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import Fleet
from cortex.gateway.poller import Poller
from cortex.service import logs
from cortex.service.watch import Watch
from cortex.wire import neuron as wire

UNLOAD_SECONDS = 120.0  # a neuron's own drain is shorter
RESTART_SECONDS = 600.0  # from the order until every model is loaded again
MEMORY_SECONDS = 15.0  # from an unload to the memory's being free by the neuron's own account
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0  # seconds between two looks for it

log = logs.get("gateway.owner")


@attrs.frozen(eq=False)
class Claim:
    """What one transition keeps: ``devices`` (None: all) and ``mb`` of memory on them.

    ``leaving`` are the models that make room, closed to new requests.
    """

    devices: frozenset[int] | None
    mb: int | None = None
    leaving: tuple[str, ...] = ()

    def touches(self, devices: frozenset[int] | None) -> bool:
        return devices is None or self.devices is None or bool(devices & self.devices)


@attrs.frozen
class _Settling:
    """What a transition has taken, until a poll that was asked after it has seen it."""

    devices: frozenset[int] | None
    mb: int
    ended_at: float


@attrs.define(eq=False)
class NodeOwner:
    """Claims, and what is done under them. *changed* is called when a claim was given back."""

    name: str
    _fleet: Fleet
    _control: NeuronControl
    _poller: Poller
    _changed: Callable[[], None]
    # By model, when this gateway loaded it.
    loaded_at: dict[str, float] = attrs.field(factory=dict, init=False)
    _cycles: int = attrs.field(default=0, init=False)  # unloads in the spell
    _spell: int = attrs.field(default=-1, init=False)
    _claims: list[Claim] = attrs.field(factory=list, init=False)
    _settling: list[_Settling] = attrs.field(factory=list, init=False)
    _moved_at: float = attrs.field(default=-math.inf, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    _given_back: trio.Event = attrs.field(factory=trio.Event, init=False)

    # Claims

    def free(self, devices: frozenset[int] | None) -> bool:
        """Whether no transition is under way on *devices* (None: on any)."""
        return not any(claim.touches(devices) for claim in self._claims)

    def taken(self) -> frozenset[int]:
        """Devices on which a transition is under way, or is to come first."""
        discovery = self._fleet.node(self.name).discovery
        every = (
            frozenset(device.index for device in discovery.devices) if discovery else frozenset()
        )
        if self._waiting:
            return every
        taken: frozenset[int] = frozenset()
        for claim in self._claims:
            taken |= every if claim.devices is None else claim.devices
        return taken

    def claim(
        self,
        devices: Iterable[int] | None,
        mb: int | None = None,
        leaving: tuple[str, ...] = (),
    ) -> Claim:
        """Keep *devices*, which are `free`. Give it back with `release`."""
        claim = Claim(None if devices is None else frozenset(devices), mb, leaving)
        assert self.free(claim.devices), f"{self.name}: {devices} are claimed already"
        self._claims.append(claim)
        return claim

    def release(self, claim: Claim, *, settle: bool) -> None:
        """Give *claim* back; with *settle* its memory counts as taken until a poll shows it."""
        self._claims.remove(claim)
        if settle:
            self._moved_at = trio.current_time()
        if settle and claim.mb is not None:
            self._settling.append(_Settling(claim.devices, claim.mb, trio.current_time()))
        given_back, self._given_back = self._given_back, trio.Event()
        given_back.set()
        self._changed()

    async def claimed(self, devices: frozenset[int] | None) -> Claim:
        """A claim on *devices* once they are free; who waits here comes before any placement.
        Unbounded: the caller brings its patience."""
        self._waiting += 1
        try:
            while not self.free(devices):
                await self._given_back.wait()
        finally:
            self._waiting -= 1
        return self.claim(devices)

    def closed(self, model_id: str) -> bool:
        """Whether the model is to leave, and takes no new requests."""
        return any(model_id in claim.leaving for claim in self._claims)

    def stale(self) -> bool:
        """Whether a model has come or left since the node's memory was last measured."""
        asked_at = self._fleet.node(self.name).asked_at
        return asked_at is not None and asked_at <= self._moved_at

    def cycles(self) -> int:
        """How many models this gateway has had the neuron unload since it started, or since it was
        last restarted, or came back."""
        spell = self._fleet.node(self.name).spell
        if spell != self._spell:
            self._spell, self._cycles = spell, 0
        return self._cycles

    def promised_mb(self) -> dict[int, int]:
        """MiB by device that loads took which no poll has seen yet."""
        node = self._fleet.node(self.name)
        seen = node.asked_at if node.asked_at is not None else 0.0
        self._settling = [each for each in self._settling if seen <= each.ended_at]
        promised: dict[int, int] = {}
        indices = [d.index for d in node.discovery.devices] if node.discovery else []
        for each in self._settling:
            for index in each.devices if each.devices is not None else indices:
                promised[index] = promised.get(index, 0) + each.mb
        return promised

    # Transitions; the caller holds the claim

    async def make_room(self, claim: Claim, told: Callable[[str], None]) -> None:
        """Unload the models that are to leave, *told* of each, and wait until memory is free.

        The neuron judges in the end: after a bound the load is tried all the same. Raises what an
        unload raises.
        """
        if not claim.leaving:
            return
        for model_id in claim.leaving:
            await self.unload(model_id)
            told(model_id)
        unloaded_at, pause = trio.current_time(), FIRST_LOOK
        with trio.move_on_after(MEMORY_SECONDS):
            while not self._roomy(claim, unloaded_at):
                self._poller.probe_now(self.name)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_LOOK)
            return
        log.warning("memory not free after unloading", node=self.name, seconds=MEMORY_SECONDS)

    async def unload(self, model_id: str) -> None:
        """Unload one model; the neuron lets its requests finish first. One that is not there is a
        success. Raises what the neuron says, and `UpstreamError` when it takes too long."""
        self._fleet.unloading(self.name, model_id)  # no new lease from here on
        try:
            with trio.fail_after(UNLOAD_SECONDS):
                await self._control.unload(self.name, model_id)
        except ModelNotFound:
            pass  # which was the goal
        except trio.TooSlowError:
            raise UpstreamError(
                f"neuron {self.name} did not unload {model_id} within {UNLOAD_SECONDS:g} s"
            ) from None
        finally:
            self._poller.probe_now(self.name)
        self._fleet.gone(self.name, model_id)
        self.loaded_at.pop(model_id, None)
        self._moved_at = trio.current_time()
        self._cycles = self.cycles() + 1
        log.info("unloaded", model=model_id, node=self.name)

    async def load(self, request: wire.LoadRequest) -> wire.Model:
        """Have the neuron load it. `UpstreamError` when it goes away: its host may never tell."""
        model_id = request.model_id
        answer = await self._while_healthy(request)
        self.loaded_at[model_id] = trio.current_time()
        model = answer.model or wire.Model(model_id, wire.LOADED, devices=request.devices or ())
        model = attrs.evolve(model, id=model_id, status=answer.status)
        self._fleet.loaded(self.name, model)
        self._poller.probe_now(self.name)
        return model

    async def _while_healthy(self, request: wire.LoadRequest) -> wire.LoadAnswer:
        spell = self._fleet.node(self.name).spell
        answer: wire.LoadAnswer | None = None
        error: CortexError | None = None
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                nonlocal answer, error
                try:
                    answer = await self._control.load(self.name, request)
                except CortexError as exc:
                    error = exc
                nursery.cancel_scope.cancel("the neuron has answered")

            nursery.start_soon(ask, name=f"load {request.model_id} on {self.name}")
            while (
                self._fleet.node(self.name).healthy and self._fleet.node(self.name).spell == spell
            ):
                await self._fleet.wait_changed()
            error = UpstreamError(f"neuron {self.name} went away while it was loading")
            nursery.cancel_scope.cancel("the neuron went away")
        if answer is not None:
            return answer
        assert error is not None  # the nursery ends by one of the two
        raise error

    async def restart(self) -> None:
        """Have the neuron, which is idle and `free`, replace its process; return once it has its
        models again. Its models take no requests meanwhile. Raises what the neuron says, and
        `UpstreamError` when it takes too long."""
        node = self._fleet.node(self.name)
        models = tuple(model.id for model in node.models if model.status == wire.LOADED)
        claim = self.claim(None, leaving=models)
        try:
            self._cycles = 0  # whatever comes of it, it is not tried again at once
            await self._control.restart(self.name)
            with trio.move_on_after(RESTART_SECONDS):
                while not self._returned(node.spell, models):
                    await self._fleet.wait_changed()
                return
        finally:
            self.release(claim, settle=True)
        raise UpstreamError(
            f"neuron {self.name} did not come back with its models within {RESTART_SECONDS:g} s"
        )

    def _returned(self, spell: int, models: tuple[str, ...]) -> bool:
        node = self._fleet.node(self.name)
        if node.spell == spell or not node.serving:
            return False
        states = {model.id: model.status for model in node.models}
        return all(states.get(each) in (wire.LOADED, wire.FAILED) for each in models)

    def _roomy(self, claim: Claim, since: float) -> bool:
        """Whether a poll asked after *since* shows the memory of *claim* as free, or cannot say."""
        node = self._fleet.node(self.name)
        if not node.healthy:
            return True  # the load will tell
        if node.asked_at is None or node.asked_at <= since:
            return False
        if node.health is None or claim.mb is None:
            return True
        return all(
            device.vram_free_mb is None or device.vram_free_mb >= claim.mb
            for device in node.health.devices
            if claim.devices is None or device.index in claim.devices
        )


@attrs.define(eq=False)
class NodeOwners:
    """An owner for each node, made when it is first asked for."""

    _fleet: Fleet
    _control: NeuronControl
    _poller: Poller
    _owners: dict[str, NodeOwner] = attrs.field(factory=dict, init=False)
    _revision: Watch[int] = attrs.field(factory=lambda: Watch(0), init=False)

    def of(self, node: str) -> NodeOwner:
        owner = self._owners.get(node)
        if owner is None:
            owner = NodeOwner(node, self._fleet, self._control, self._poller, self._change)
            self._owners[node] = owner
        return owner

    def known(self) -> tuple[NodeOwner, ...]:
        return tuple(self._owners.values())

    def loaded(self) -> frozenset[tuple[str, str]]:
        """Pairs of node and model that this gateway loaded."""
        return frozenset(
            (owner.name, model) for owner in self._owners.values() for model in owner.loaded_at
        )

    async def wait_changed(self) -> None:
        """Return after the next claim was given back."""
        await self._revision.wait_changed()

    def _change(self) -> None:
        self._revision.set(self._revision.value + 1)
