"""Cold loads: one at a time per model, owned by the gateway, failures remembered.

A load does not belong to the request that happened to need it first: it goes on when every request
has left. It lasts as long as its neuron is healthy and at work on it; how long anybody waits for it
is the waiter's affair.
"""

from __future__ import annotations

import copy

import attrs
import trio

from cortex.config.catalogue import CatalogueEntry
from cortex.errors import (
    Conflict,
    CortexError,
    LoadFailed,
    NoFeasibleNode,
    NoHealthyNode,
    Unavailable,
    UpstreamError,
)
from cortex.gateway.catalogue import Resolved
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.placement import Placement, Reason, Refusal, infeasible, place
from cortex.gateway.poller import Poller
from cortex.service import logs
from cortex.service.single_flight import FlightFailed, SingleFlight
from cortex.wire import neuron as wire

FIRST_BACK_OFF = 5.0  # seconds until a failed load is tried again; doubles with each failure
LONGEST_BACK_OFF = 300.0
NO_NODE_RETRY = 5.0  # two polls and a bit
NO_ROOM_RETRY = 10.0

log = logs.get("gateway.loads")


@attrs.frozen
class _Goal:
    """One load; ``node`` is None where placement decides."""

    model: str
    node: str | None


@attrs.define(eq=False)
class _Active:
    """A load under way; ``node`` is None until it is placed."""

    started_at: float
    vram_mb: int | None
    node: str | None = None


@attrs.frozen
class _Settling:
    """A load that has ended, until a poll has seen what it took."""

    node: str
    vram_mb: int
    ended_at: float


@attrs.frozen
class _Failure:
    count: int
    until: float  # trio's clock
    message: str


class _Failed(Exception):
    """A neuron was asked to load and did not; ``__cause__`` is what it said."""

    def __init__(self, node: str, cause: CortexError) -> None:
        super().__init__(node)
        self.node = node
        self.cause = cause


class Loads:
    """Owner of the loads under way and of the memory of those that failed."""

    def __init__(
        self,
        nursery: trio.Nursery,
        fleet: Fleet,
        control: NeuronControl,
        poller: Poller,
        metrics: GatewayMetrics,
    ) -> None:
        self._fleet = fleet
        self._control = control
        self._poller = poller
        self._metrics = metrics
        self._flights: SingleFlight[_Goal, str] = SingleFlight(nursery)
        self._active: dict[_Goal, _Active] = {}
        self._settling: list[_Settling] = []
        self._failures: dict[str, _Failure] = {}
        self._loaded: set[tuple[str, str]] = set()  # (node, model) loaded by this gateway

    async def ensure(self, resolved: Resolved) -> str:
        """Load the model where placement says; the name of the node that has it.

        Joins a load under way. Unbounded: the caller brings its patience. Raises `LoadFailed` with
        the cause (also when the last attempt is too recent for another), or why no node can be had.
        """
        goal = _Goal(resolved.model, None)
        failure = self._failures.get(resolved.model)
        if failure is not None and goal not in self._flights:
            remaining = failure.until - trio.current_time()
            if remaining > 0:
                raise LoadFailed(failure.message, retry_after=remaining)
        try:
            return await self._join(goal, resolved.entry)
        except _Failed as failed:
            failure = self._failures[resolved.model]
            remaining = max(1.0, failure.until - trio.current_time())
            raise LoadFailed(failure.message, retry_after=remaining) from failed.cause

    async def load(self, resolved: Resolved, node: str | None) -> str:
        """An operator's load: as `ensure`, but on *node* if given, whatever failed before.

        Raises what the neuron said.
        """
        self._failures.pop(resolved.model, None)
        try:
            return await self._join(_Goal(resolved.model, node), resolved.entry)
        except _Failed as failed:
            raise copy.copy(failed.cause) from failed.cause

    def under_way(self, model_id: str) -> tuple[str | None, float] | None:
        """The node and the age in seconds of the oldest load of *model_id*, if there is one."""
        found = [active for goal, active in self._active.items() if goal.model == model_id]
        if not found:
            return None
        oldest = min(found, key=lambda active: active.started_at)
        return oldest.node, trio.current_time() - oldest.started_at

    def loaded_by_us(self) -> frozenset[tuple[str, str]]:
        """Pairs of node and model that this gateway loaded, and so may unload when idle."""
        return frozenset(self._loaded)

    def unloaded(self, node: str, model_id: str) -> None:
        self._loaded.discard((node, model_id))

    async def _join(self, goal: _Goal, entry: CatalogueEntry | None) -> str:
        async def fly(goal: _Goal) -> str:
            return await self._run(goal, entry)

        try:
            return await self._flights.run(goal, fly)
        except FlightFailed as failed:
            cause = failed.__cause__
            if isinstance(cause, _Failed):
                raise _Failed(cause.node, cause.cause) from cause.cause
            if isinstance(cause, CortexError):
                # Each waiter raises one of its own: a shared one would collect their tracebacks.
                raise copy.copy(cause) from cause
            raise

    async def _run(self, goal: _Goal, entry: CatalogueEntry | None) -> str:
        active = _Active(trio.current_time(), entry.vram_mb if entry else None)
        self._active[goal] = active
        failed: _Failed | None = None
        tried: set[str] = set()
        try:
            while True:
                placement = await self._placed(goal, entry, frozenset(tried), failed)
                active.node = placement.node
                try:
                    await self._load_on(goal.model, entry, placement)
                except CortexError as exc:
                    failed = _Failed(placement.node, exc)
                    self._remember(goal.model, placement.node, exc)
                    if goal.node is not None or not _another_may_do(exc):
                        raise failed from exc
                    tried.add(placement.node)
                else:
                    self._failures.pop(goal.model, None)
                    return placement.node
        finally:
            del self._active[goal]
            if active.node is not None:
                self._settle(active.node, active.vram_mb)

    async def _placed(
        self,
        goal: _Goal,
        entry: CatalogueEntry | None,
        tried: frozenset[str],
        failed: _Failed | None,
    ) -> Placement:
        if goal.node is not None:
            return self._placed_on(goal.node, entry)
        while True:
            nodes = self._fleet.nodes()
            promised = self._promised(goal)
            decision = place(entry, nodes, promised_mb=promised, exclude=tried)
            if isinstance(decision, Placement):
                log.info("placed", model=goal.model, node=decision.node, free_mb=decision.free_mb)
                return decision
            if failed is not None:
                raise failed from failed.cause
            if decision.reason is not Reason.FULL or not promised:
                raise _refused(goal.model, decision)
            await self._fleet.wait_changed()  # a load elsewhere will end, and show what is left

    def _placed_on(self, name: str, entry: CatalogueEntry | None) -> Placement:
        node = self._fleet.node(name)
        if not node.serving:
            raise NoHealthyNode(f"neuron {name} is not reachable now", retry_after=NO_NODE_RETRY)
        never = infeasible(entry, node)
        if never is not None:
            raise NoFeasibleNode(never)
        decision = place(entry, (node,))
        # Where the operator has decided, a lack of room is the neuron's to tell.
        return decision if isinstance(decision, Placement) else Placement(name, None, None)

    async def _load_on(
        self, model_id: str, entry: CatalogueEntry | None, placement: Placement
    ) -> None:
        node, started_at = placement.node, trio.current_time()
        answer = await self._while_healthy(node, _request(model_id, entry, placement))
        seconds = trio.current_time() - started_at
        self._loaded.add((node, model_id))
        self._metrics.cold_start(model_id, node)
        self._metrics.load_seconds(model_id, node, seconds)
        log.info("loaded", model=model_id, node=node, seconds=round(seconds, 3))
        model = answer.model or wire.Model(model_id, wire.LOADED, devices=placement.devices or ())
        self._fleet.loaded(node, attrs.evolve(model, id=model_id, status=answer.status))
        self._poller.probe_now(node)

    async def _while_healthy(self, node: str, request: wire.LoadRequest) -> wire.LoadAnswer:
        """The neuron's answer. `UpstreamError` when it goes away: its host may never tell us."""
        spell = self._fleet.node(node).spell
        answer: wire.LoadAnswer | None = None
        error: CortexError | None = None
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                nonlocal answer, error
                try:
                    answer = await self._control.load(node, request)
                except CortexError as exc:
                    error = exc
                nursery.cancel_scope.cancel("the neuron has answered")

            nursery.start_soon(ask, name=f"load {request.model_id} on {node}")
            while self._fleet.node(node).healthy and self._fleet.node(node).spell == spell:
                await self._fleet.wait_changed()
            error = UpstreamError(f"neuron {node} went away while it was loading")
            nursery.cancel_scope.cancel("the neuron went away")
        if answer is not None:
            return answer
        assert error is not None  # the nursery ends by one of the two
        raise error

    def _remember(self, model_id: str, node: str, error: CortexError) -> None:
        before = self._failures.get(model_id)
        count = 1 if before is None else before.count + 1
        pause = min(FIRST_BACK_OFF * 2.0 ** (count - 1), LONGEST_BACK_OFF)
        message = f"loading {model_id} on {node} failed: {error.message}"
        self._failures[model_id] = _Failure(count, trio.current_time() + pause, message)
        self._metrics.load_failed(model_id, node)
        self._poller.probe_now(node)
        log.error("load failed", exc=error, model=model_id, node=node, retry_in=pause)

    def _settle(self, node: str, vram_mb: int | None) -> None:
        if vram_mb is not None:
            self._settling.append(_Settling(node, vram_mb, trio.current_time()))

    def _promised(self, goal: _Goal) -> dict[str, int]:
        """MiB per node that other loads take or took which no poll has seen yet."""
        self._settling = [
            each
            for each in self._settling
            if (self._fleet.node(each.node).polled_at or 0.0) <= each.ended_at
        ]
        promised: dict[str, int] = {}
        for each in self._settling:
            promised[each.node] = promised.get(each.node, 0) + each.vram_mb
        for other, active in self._active.items():
            if other != goal and active.node is not None:
                promised[active.node] = promised.get(active.node, 0) + (active.vram_mb or 0)
        return promised


def _request(model_id: str, entry: CatalogueEntry | None, placement: Placement) -> wire.LoadRequest:
    if entry is None:
        return wire.LoadRequest(model_id, devices=placement.devices)
    return wire.LoadRequest(
        model_id,
        source=entry.source,
        harness=entry.harness,
        quant=entry.quant,
        context=entry.context,
        devices=placement.devices,
        tensor_parallel=entry.tensor_parallel,
        tool_format=entry.tool_format,
    )


def _another_may_do(error: CortexError) -> bool:
    """Whether the failure may be the node's own (no room, gone) and not the model's."""
    return isinstance(error, Unavailable | UpstreamError | Conflict)


def _refused(model_id: str, refusal: Refusal) -> CortexError:
    if refusal.reason is Reason.NOWHERE:
        return NoFeasibleNode(f"{model_id} fits no neuron of this fleet: {refusal.detail}")
    if refusal.reason is Reason.UNHEALTHY:
        return NoHealthyNode(
            f"no neuron that could load {model_id} is in service: {refusal.detail}",
            retry_after=NO_NODE_RETRY,
        )
    return Unavailable(
        f"no neuron has room for {model_id} now: {refusal.detail}", retry_after=NO_ROOM_RETRY
    )
