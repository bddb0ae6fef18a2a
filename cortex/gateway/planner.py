"""Who comes next, where, and at whose expense.

One goal a model, shared by every request that waits for it. Goals are looked at in the order in
which they were first wanted, each time something has changed, and each that can be placed is: in
free memory, in that of models which may leave, or, after a bounded wait, in that of one which is
busy; that one is closed to newcomers and let finish. While it finishes, its devices are kept for
the goal, so that nobody overtakes for ever; if room comes free elsewhere, or everybody has left, it
is opened again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable

import attrs
import trio

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings
from cortex.errors import (
    Conflict,
    CortexError,
    DeviceOutOfMemory,
    NoFeasibleNode,
    NoHealthyNode,
    Unavailable,
    UpstreamError,
)
from cortex.gateway.control import NeuronControl
from cortex.gateway.eviction import rank_of
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.goals import Goal, LoadAttemptFailed
from cortex.gateway.model_costs import ModelCosts
from cortex.gateway.node_owner import NodeOwner, NodeOwners
from cortex.gateway.occupancy import Occupancy
from cortex.gateway.placement import (
    Demand,
    Hold,
    Placement,
    Reason,
    Refusal,
    infeasible,
    may_serve,
    place,
)
from cortex.service import logs
from cortex.wire import neuron as wire

NO_NODE_RETRY = 5.0  # two polls and a bit
NO_ROOM_RETRY = 10.0
ESTIMATE_SECONDS = 10.0  # the headers of a model that is not there yet come over the network
ROUND_SECONDS = 0.1  # polls come in by the dozen: goals are looked at no more often than this
COMING = (wire.LOADING, wire.RECOVERING, wire.UNLOADING)  # states that a replica gets out of

Evicted = Callable[..., None]  # node, model, reason; for whom, by name

log = logs.get("gateway.planner")


def _nothing(*_: object) -> None:
    pass


@attrs.define(eq=False)
class Planner:
    """Owner of the goals. What it decides it carries out in the same step, or claims."""

    _nursery: trio.Nursery
    _fleet: Fleet
    _control: NeuronControl
    _owners: NodeOwners
    _costs: ModelCosts
    _occupancy: Callable[[], Occupancy]
    _rules: EvictionSettings  # may be live: read each time
    _evicted: Evicted
    on_loaded: Callable[[Goal, str, float], None] = _nothing  # node and seconds
    on_failed: Callable[[Goal, str, CortexError], None] = _nothing
    _goals: dict[tuple[str, str | None], Goal] = attrs.field(factory=dict, init=False)
    _estimating: set[str] = attrs.field(factory=set, init=False)
    _asked: set[str] = attrs.field(factory=set, init=False)  # sizes that were asked for
    _nudged: trio.Event = attrs.field(factory=trio.Event, init=False)

    def want(self, model: str, node: str | None, entry: CatalogueEntry | None) -> Goal:
        """The goal of having *model*, on *node* if given: the one there is, or a new one."""
        goal = self._goals.get((model, node))
        if goal is None:
            goal = Goal(model, node, entry, trio.current_time())
            self._goals[goal.key] = goal
            self._ask_size(goal)
            self._nudge()
        return goal

    def goal(self, model: str) -> Goal | None:
        """The goal for *model*, wherever; one that is being carried out before one that waits."""
        found = [goal for goal in self._goals.values() if goal.model == model]
        return min(found, key=lambda goal: (not goal.under_way, goal.since), default=None)

    def call_off(self, node: str, model: str) -> bool:
        """Have a load of *model* that is under way on *node* not be tried again if it fails;
        whether there is one."""
        found = [g for g in self._goals.values() if g.model == model and g.at_work_on == node]
        for goal in found:
            goal.called_off = True
        return bool(found)

    async def run(self) -> None:
        """Look at the goals whenever something has changed. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed, self._fleet.wait_changed, name="planner: fleet")
            nursery.start_soon(self._heed, self._fleet.wait_idle, name="planner: idle models")
            nursery.start_soon(self._heed, self._owners.wait_changed, name="planner: claims")
            while True:
                wake_at = min((goal.wake_at for goal in self._goals.values()), default=math.inf)
                with trio.move_on_at(wake_at):
                    await self._nudged.wait()
                self._nudged = trio.Event()
                self._round()

    def _nudge(self) -> None:
        self._nudged.set()

    async def _heed(self, wait_changed: Callable[[], Awaitable[None]]) -> None:
        while True:
            await wait_changed()
            if self._goals:
                await trio.sleep(ROUND_SECONDS)
                self._nudge()

    # One look at every goal; without awaiting, so that nothing changes meanwhile

    def _round(self) -> None:
        now = trio.current_time()
        view = self._occupancy()
        for goal in list(self._goals.values()):
            if not goal.under_way:
                goal.wake_at = math.inf
                self._advance(goal, view, now)

    def _advance(self, goal: Goal, view: Occupancy, now: float) -> None:
        ready = next(iter(self._ready(goal)), None)
        if ready is not None:
            goal.land(ready.node.name)
            self._drop(goal)
        elif not goal.wanted(now):
            log.info("nobody waits any more", model=goal.model)
            self._drop(goal)
        elif goal.placement is not None:
            self._drain(goal, goal.placement, view, now)
        elif self._coming(goal):
            goal.hold("it is loading, unloading or recovering", math.inf)
        elif goal.model not in self._estimating:
            self._place(goal, view, now)
        if not goal.landed.is_set() and not goal.waiters and not goal.ordered:
            goal.wake_at = min(goal.wake_at, goal.forgotten_at)

    def _place(self, goal: Goal, view: Occupancy, now: float) -> None:
        decision = self._decision(goal, view, now)
        if isinstance(decision, Placement):
            owner = self._owners.of(decision.node)
            mb = self._mb(goal)
            claim = owner.claim(decision.devices, mb, decision.victims)
            goal.placement, goal.claim = decision, claim
            if decision.hand_over:
                leaving = ", ".join(decision.victims)
                log.info("handing over", model=goal.model, node=decision.node, leaving=leaving)
                self._drain(goal, decision, view, now)
            else:
                self._begin(goal, decision)
        elif isinstance(decision, Hold):
            if decision.detail != goal.detail:
                log.info("waiting for room", model=goal.model, why=decision.detail)
            goal.hold(decision.detail, decision.until)
        elif goal.failed is not None:
            self._fail(goal, goal.failed)
        else:
            self._fail(goal, _refused(goal.model, decision))

    def _decision(self, goal: Goal, view: Occupancy, now: float) -> Placement | Hold | Refusal:
        mb = self._mb(goal)
        demand = Demand(goal.entry, mb, now, goal.since, rank_of(goal.entry))
        sites = view.sites(goal.model, demand, goal.node)
        decision = place(demand, sites, self._rules, exclude=frozenset(goal.tried))
        if goal.node is None or not isinstance(decision, Refusal):
            return decision
        node = self._fleet.node(goal.node)
        if not node.serving or infeasible(goal.entry, node, mb) is not None or goal.tried:
            return decision
        # Where the operator has decided, a lack of room is the neuron's to tell.
        if not self._owners.of(goal.node).free(None):
            return Hold(math.inf, f"{goal.node}: another model is being loaded or unloaded")
        return Placement(goal.node, None, None)

    def _drain(self, goal: Goal, placement: Placement, view: Occupancy, now: float) -> None:
        """Begin once the models that leave have finished; or begin elsewhere if that is sooner."""
        node = placement.node
        pinned = any(view.held(node, each) for each in placement.victims)  # since the decision
        if pinned or not self._fleet.node(node).serving:
            self._reopen(goal)
            self._place(goal, view, now)
            return
        busy = [each for each in placement.victims if self._fleet.load_of(node, each)]
        if not busy:
            self._begin(goal, placement)
            return
        other = self._decision(goal, view, now)
        if isinstance(other, Placement) and not other.hand_over:
            self._reopen(goal)
            self._place(goal, view, now)
            return
        goal.hold(f"{node}: {', '.join(busy)} is finishing", math.inf)

    def _reopen(self, goal: Goal) -> None:
        """Take the models that were to leave back into service."""
        placement, claim = goal.placement, goal.claim
        if placement is not None and claim is not None:
            goal.placement = goal.claim = None
            self._owners.of(placement.node).release(claim, settle=False)

    def _drop(self, goal: Goal) -> None:
        self._reopen(goal)
        del self._goals[goal.key]

    def _fail(self, goal: Goal, error: Exception) -> None:
        goal.fail(error)
        self._drop(goal)

    # What else is known of a goal

    def _mb(self, goal: Goal) -> int | None:
        """MiB that the goal's model needs, as far as known."""
        totals = [
            device.vram_total_mb
            for node in self._fleet.nodes()
            if node.discovery is not None and infeasible(goal.entry, node) is None
            for device in node.discovery.devices
            if device.vram_total_mb is not None
        ]
        return self._costs.fitting_mb(goal.model, goal.entry, max(totals, default=None))

    def _replicas(self, goal: Goal) -> Iterable[Replica]:
        return (
            replica
            for replica in self._fleet.replicas(goal.model)
            if replica.node.serving
            and goal.node in (None, replica.node.name)
            and may_serve(goal.entry, replica.node)
        )

    def _ready(self, goal: Goal) -> Iterable[Replica]:
        return (
            replica
            for replica in self._replicas(goal)
            if replica.servable and not self._owners.of(replica.node.name).closed(goal.model)
        )

    def _coming(self, goal: Goal) -> bool:
        """Whether a replica is on its way, by itself or by another goal: not to be doubled."""
        replicas = [r for r in self._replicas(goal) if r.node.name not in goal.tried]
        return any(replica.model.status in COMING for replica in replicas) or any(
            other.model == goal.model and goal.node in (None, other.at_work_on)
            for other in self._goals.values()
            if other.under_way
        )

    # Carrying out

    def _begin(self, goal: Goal, placement: Placement) -> None:
        goal.under_way = True
        log.info(
            "placed",
            model=goal.model,
            node=placement.node,
            free_mb=placement.free_mb,
            instead_of=", ".join(placement.victims) or None,
            waited=round(trio.current_time() - goal.since, 3),
        )
        name = f"load {goal.model} on {placement.node}"
        self._nursery.start_soon(self._carry_out, goal, placement, name=name)

    async def _carry_out(self, goal: Goal, placement: Placement) -> None:
        owner, claim = self._owners.of(placement.node), goal.claim
        assert claim is not None  # made with the decision
        node = placement.node
        error: Exception | None = None
        try:
            reason = "hand_over" if placement.hand_over else "room"

            def told(model: str) -> None:
                self._evicted(placement.node, model, reason, in_favour_of=goal.model)

            await owner.make_room(claim, told)
            ready = next(iter(self._ready(goal)), None)
            if ready is not None:  # taken back into service meanwhile
                node = ready.node.name
            else:
                await self._load(goal, placement, owner)
        except CortexError as exc:
            error = exc
        except Exception as exc:  # a bug: those who wait are told, the gateway goes on
            log.error("load failed", exc=exc, model=goal.model, node=placement.node)
            error = exc
        finally:
            goal.placement = goal.claim = None
            goal.under_way = False
            owner.release(claim, settle=True)
        self._nudge()
        if error is None:
            goal.land(node)
            self._drop(goal)
        elif isinstance(error, CortexError):
            self._failed(goal, placement, error)
        else:
            self._fail(goal, error)

    async def _load(self, goal: Goal, placement: Placement, owner: NodeOwner) -> None:
        started_at = trio.current_time()
        model = await owner.load(_request(goal.model, goal.entry, placement.devices))
        seconds = trio.current_time() - started_at
        mb = self._mb(goal)
        self._costs.loaded(placement.node, model, mb, seconds)
        self.on_loaded(goal, placement.node, seconds)
        log.info("loaded", model=goal.model, node=placement.node, seconds=round(seconds, 3))

    def _failed(self, goal: Goal, placement: Placement, error: CortexError) -> None:
        """Try another node if that may help, else tell everybody."""
        node = placement.node
        goal.failed = LoadAttemptFailed(node, error)
        self.on_failed(goal, node, error)
        if isinstance(error, DeviceOutOfMemory) and placement.free_mb is not None:
            self._costs.refused(goal.model, placement.free_mb)
        if goal.node is not None or goal.called_off or not _another_may_do(error):
            self._fail(goal, goal.failed)
        else:
            goal.tried.add(node)

    # Sizes nobody has stated

    def _ask_size(self, goal: Goal) -> None:
        known = self._costs.mb(goal.model, goal.entry) is not None
        if not known and goal.model not in self._asked:
            self._asked.add(goal.model)
            self._estimating.add(goal.model)
            self._nursery.start_soon(self._estimate, goal, name=f"estimate {goal.model}")

    async def _estimate(self, goal: Goal) -> None:
        """Ask a neuron that could load it what it takes; without an answer that stays unknown."""
        able = [
            node.name
            for node in self._fleet.nodes()
            if node.serving and goal.node in (None, node.name)
            if infeasible(goal.entry, node) is None
        ]
        request = _request(goal.model, goal.entry, None)
        try:
            with trio.move_on_after(ESTIMATE_SECONDS):
                for node in able[:1]:
                    estimate = await self._control.estimate(node, request)
                    self._costs.estimated(goal.model, estimate)
        except CortexError as exc:
            log.info("size not known", model=goal.model, why=exc.message)
        finally:
            self._estimating.discard(goal.model)
            self._nudge()


def _request(
    model_id: str, entry: CatalogueEntry | None, devices: tuple[int, ...] | None
) -> wire.LoadRequest:
    if entry is None:
        return wire.LoadRequest(model_id, devices=devices)
    return wire.LoadRequest(
        model_id,
        source=entry.source,
        harness=entry.harness,
        quant=entry.quant,
        context=entry.context,
        devices=devices,
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
