"""Loads and unloads, as requests, operators and the idle unloader ask for them.

A load does not belong to the request that happened to need it first: any number of requests share
one, and once it has begun it goes on when all of them have left. How long anybody waits for it is
the waiter's affair. Failures are remembered with a back-off, and their cause is told.
"""

from __future__ import annotations

import attrs
import trio

from cortex.config.gateway import EvictionSettings
from cortex.errors import CortexError, LoadFailed
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.control import NeuronControl
from cortex.gateway.defrag import Defragmenter
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet
from cortex.gateway.goals import Goal, LoadAttemptFailed
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.model_costs import ModelCosts
from cortex.gateway.node_owner import NodeOwners
from cortex.gateway.occupancy import Occupancy
from cortex.gateway.pins import Pins
from cortex.gateway.planner import Planner
from cortex.gateway.poller import Poller
from cortex.service import logs

FIRST_BACK_OFF = 5.0  # seconds until a failed load is tried again; doubles with each failure
LONGEST_BACK_OFF = 300.0

log = logs.get("gateway.loads")


@attrs.frozen
class _Failure:
    count: int
    until: float  # trio's clock
    message: str

    def retry_after(self) -> float:
        return self.until - trio.current_time()


class Loads:
    """What is wanted goes to the planner, what failed is remembered here."""

    def __init__(
        self,
        nursery: trio.Nursery,
        fleet: Fleet,
        control: NeuronControl,
        poller: Poller,
        metrics: GatewayMetrics,
        names: ModelNames,
        rules: EvictionSettings,
        *,
        pins: Pins,
        events: EventLog | None = None,
    ) -> None:
        """Everything runs in *nursery*, which outlives every request. *rules* may be live: they are
        read each time."""
        self._fleet = fleet
        self._poller = poller
        self._metrics = metrics
        self._events = events
        self._failures: dict[str, _Failure] = {}
        self.owners = NodeOwners(fleet, control, poller)
        costs = ModelCosts()

        def occupancy() -> Occupancy:
            return Occupancy(names.catalogue, fleet, costs, self.owners.of, pins)

        self.occupancy = occupancy
        self._planner = Planner(
            nursery, fleet, control, self.owners, costs, occupancy, rules, self._evicted
        )
        self._planner.on_loaded = self._succeeded
        self._planner.on_failed = self._remember
        nursery.start_soon(self._planner.run, name="load planner")
        defragmenter = Defragmenter(fleet, self.owners, rules)
        nursery.start_soon(defragmenter.run, name="defragmenter")

    # What is asked for

    async def ensure(self, resolved: Resolved) -> str:
        """Load the model where placement says; the name of the node that has it.

        Joins a load that is wanted already. Unbounded: the caller brings its patience. Raises
        `LoadFailed` with the cause (also when the last attempt is too recent for another), or why
        no node can be had.
        """
        failure = self._failures.get(resolved.model)
        retry_after = failure.retry_after() if failure is not None else 0.0
        if failure is not None and retry_after > 0 and self._planner.goal(resolved.model) is None:
            raise LoadFailed(failure.message, retry_after=retry_after)
        try:
            return await self._planner.want(resolved.model, None, resolved.entry).outcome()
        except LoadAttemptFailed as failed:
            failure = self._failures[resolved.model]
            retry_after = max(1.0, failure.retry_after())
            raise LoadFailed(failure.message, retry_after=retry_after) from failed.cause

    async def load(self, resolved: Resolved, node: str | None) -> str:
        """An operator's load: as `ensure`, but on *node* if given, whatever failed before.

        Raises what the neuron said.
        """
        self._failures.pop(resolved.model, None)
        goal = self._planner.want(resolved.model, node, resolved.entry)
        goal.ordered = True
        try:
            return await goal.outcome()
        except LoadAttemptFailed as failed:
            raise failed.own_cause() from failed.cause

    async def unload(self, node: str, model_id: str, reason: str = "") -> None:
        """Unload a replica once nothing else is under way on its devices; a load of it is called
        off. A *reason* is counted as an eviction. Raises what the neuron said."""
        owner = self.owners.of(node)
        if self._planner.call_off(node, model_id):
            await owner.unload(model_id)  # by which the neuron ends the load
            return
        model = self._fleet.node(node).model(model_id)
        devices = frozenset(model.devices) if model is not None and model.devices else None
        claim = await owner.claimed(devices)
        try:
            await owner.unload(model_id)
        finally:
            owner.release(claim, settle=False)
        if reason:
            self._evicted(node, model_id, reason)

    def unloaded(self, node: str, model_id: str) -> None:
        """The neuron was found not to have the model."""
        self.owners.of(node).loaded_at.pop(model_id, None)

    # What others may know

    def handing_over(self, node: str, model_id: str) -> bool:
        """Whether the replica is to leave for another model, and takes no new requests."""
        return self.owners.of(node).closed(model_id)

    def under_way(self, model_id: str) -> tuple[str | None, float] | None:
        """The node of the load of *model_id* that is wanted and for how many seconds it has been,
        if there is one; no node as long as it waits for a place."""
        goal = self._planner.goal(model_id)
        if goal is None:
            return None
        return goal.at_work_on, trio.current_time() - goal.since

    def waiting_for(self, model_id: str) -> str:
        """What a wanted model waits for; empty when it is being loaded, or is not wanted."""
        goal = self._planner.goal(model_id)
        return goal.detail if goal is not None and goal.at_work_on is None else ""

    def loaded_by_us(self) -> frozenset[tuple[str, str]]:
        """Pairs of node and model that this gateway loaded, and so may unload when idle."""
        return self.owners.loaded()

    # What the planner tells

    def _succeeded(self, goal: Goal, node: str, seconds: float) -> None:
        self._failures.pop(goal.model, None)
        if not goal.ordered:
            self._metrics.cold_start(goal.model, node)
        self._metrics.load_seconds(goal.model, node, seconds)

    def _remember(self, goal: Goal, node: str, error: CortexError) -> None:
        before = self._failures.get(goal.model)
        count = 1 if before is None else before.count + 1
        pause = min(FIRST_BACK_OFF * 2.0 ** (count - 1), LONGEST_BACK_OFF)
        message = f"loading {goal.model} on {node} failed: {error.message}"
        self._failures[goal.model] = _Failure(count, trio.current_time() + pause, message)
        self._metrics.load_failed(goal.model, node)
        self._poller.probe_now(node)
        log.error("load failed", exc=error, model=goal.model, node=node, retry_in=pause)

    def _evicted(self, node: str, model_id: str, reason: str, **more: object) -> None:
        self._metrics.eviction(model_id, node, reason)
        if self._events is not None:
            self._events.publish("model_evicted", node=node, model=model_id, reason=reason, **more)
        log.info("evicted", node=node, model=model_id, reason=reason, **more)
