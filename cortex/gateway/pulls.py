"""Pulls on the fleet's neurons, ordered from here: a neuron does the work and keeps the account.

What this gateway has ordered it looks at until it ends, to tell it as events and to count it; a
pull that somebody else began on a neuron is listed all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import attrs
import trio

from cortex.config.catalogue import CatalogueEntry
from cortex.errors import BadRequest, Conflict, CortexError, ModelNotFound, NoHealthyNode, clip
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.control import NeuronControl
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.gateway.metrics import GatewayMetrics
from cortex.service import logs
from cortex.wire import neuron as wire

LOOK_SECONDS = 1.0
LOOKS_ALLOWED = 60  # that fail in a row before a pull is given up: the node is gone
ASK_SECONDS = 10.0  # for an order, and for a list
UNDER_WAY = (wire.WAITING, wire.PULLING)

log = logs.get("gateway.pulls")


@attrs.frozen
class NodePull:
    node: str
    pull: wire.Pull


@attrs.define(eq=False)
class FleetPulls:
    """What is ordered is looked after in *nursery*, which outlives every request."""

    _names: ModelNames
    _fleet: Fleet
    _control: NeuronControl
    _metrics: GatewayMetrics
    _events: EventLog
    _nursery: trio.Nursery
    _watched: set[tuple[str | None, ...]] = attrs.field(factory=set, init=False)

    async def order(
        self,
        name: str,
        node: str | None,
        *,
        revision: str | None = None,
        quant: str | None = None,
        verify: bool = False,
    ) -> list[NodePull]:
        """Begin to pull *name* on *node*, or on every neuron that may load it. An order that a
        neuron refuses is a failed pull, unless it is the only one: then it is the error."""
        resolved = self._resolve(name)
        request = pull_request(resolved, revision, quant, verify)
        nodes = self._nodes(resolved.entry, node)
        found: list[NodePull] = []
        for each in nodes:
            try:
                with trio.fail_after(ASK_SECONDS):
                    pull = await self._control.pull(each, request)
            except trio.TooSlowError:
                pull = _failed(request, f"neuron {each} did not answer")
            except CortexError as exc:
                if len(nodes) == 1:
                    raise
                pull = _failed(request, exc.message)
            else:
                self._follow(each, pull)
            found.append(NodePull(each, pull))
        return found

    async def states(self) -> list[NodePull]:
        """Every pull of every neuron in service, as it is now."""
        by_node: dict[str, tuple[wire.Pull, ...]] = {}

        async def ask(node: str) -> None:
            with trio.move_on_after(ASK_SECONDS):
                try:
                    by_node[node] = (await self._control.pulls(node)).pulls
                except CortexError as exc:  # an older one has none
                    log.debug("pulls not to be had", node=node, cause=exc.message)

        async with trio.open_nursery() as nursery:
            for node in self._able():
                nursery.start_soon(ask, node.name)
        return [NodePull(node, pull) for node in sorted(by_node) for pull in by_node[node]]

    async def cancel(self, name: str, node: str | None) -> list[str]:
        """Stop the pulls of *name* on *node*, or wherever there are; the nodes."""
        model = self._resolve(name).model
        self._check_node(node)
        nodes = [
            each.node
            for each in await self.states()
            if each.pull.id == model and each.pull.status in UNDER_WAY and node in (None, each.node)
        ]
        if not nodes:
            raise ModelNotFound(f"nothing is being pulled as '{clip(name)}'")
        stopped: list[str] = []
        refusals: list[CortexError] = []

        async def stop(node: str) -> None:
            try:
                await self._control.cancel_pull(node, model)
            except CortexError as exc:
                refusals.append(exc)
            else:
                stopped.append(node)

        async with trio.open_nursery() as nursery:
            for each in dict.fromkeys(nodes):
                nursery.start_soon(stop, each)
        # One that had ended by then is no failure where others were stopped.
        failures = [each for each in refusals if not isinstance(each, ModelNotFound)]
        if failures or not stopped:
            raise (failures or refusals)[0]
        return sorted(stopped)

    def _resolve(self, name: str) -> Resolved:
        try:
            return self._names.resolve(name)
        except ModelNotFound:
            if re.fullmatch(wire.MODEL_ID, name):
                return Resolved(name, name, None)
            raise

    def _able(self) -> list[NodeSnapshot]:
        return [node for node in self._fleet.nodes() if node.serving and node.lifecycle]

    def _check_node(self, node: str | None) -> None:
        names = [known.name for known in self._fleet.nodes()]
        if node is not None and node not in names:
            raise ModelNotFound(f"no neuron of that name; there are: {', '.join(names)}")

    def _nodes(self, entry: CatalogueEntry | None, node: str | None) -> Sequence[str]:
        self._check_node(node)
        if node is not None:
            if not self._fleet.node(node).lifecycle:
                raise Conflict(f"{node} is a server whose models are not managed from here")
            return [node]
        pinned = entry.pinned_on if entry is not None else ()
        names = [each.name for each in self._able() if not pinned or each.name in pinned]
        if not names:
            raise NoHealthyNode("no neuron that may load the model is in service")
        return names

    # Looking after what was ordered

    def _follow(self, node: str, pull: wire.Pull) -> None:
        key = _key(node, pull)
        if key in self._watched:
            return
        self._watched.add(key)
        self._events.publish("pull_started", node=node, model=pull.id)
        self._nursery.start_soon(self._watch, node, pull, name=f"pull {pull.id} on {node}")

    async def _watch(self, node: str, pull: wire.Pull) -> None:
        try:
            self._ended(node, await self._end_of(node, pull))
        finally:
            self._watched.discard(_key(node, pull))

    async def _end_of(self, node: str, pull: wire.Pull) -> wire.Pull:
        lost = 0
        while pull.status in UNDER_WAY:
            await trio.sleep(LOOK_SECONDS)
            try:
                with trio.fail_after(ASK_SECONDS):
                    told = (await self._control.pulls(node)).pulls
            except (CortexError, trio.TooSlowError):
                lost += 1
                if lost >= LOOKS_ALLOWED:
                    return _lost(pull, f"neuron {node} has not answered for long")
                continue
            lost = 0
            known = [each for each in told if is_same(each, pull)]
            if not known:  # the neuron has begun anew; what came is still there
                return _lost(pull, f"neuron {node} knows nothing of it any more")
            pull = known[-1]
        return pull

    def _ended(self, node: str, pull: wire.Pull) -> None:
        # What a neuron says is a label only where it is one of these.
        known = pull.status in (wire.PULLED, wire.CANCELLED)
        self._metrics.pull_ended(node, pull.status if known else wire.FAILED)
        told = {"node": node, "model": pull.id, "result": pull.status, "error": pull.error}
        self._events.publish("pull_ended", **told, seconds=pull.seconds, bytes=pull.fetched)
        note: Callable[..., None] = log.warning if pull.status == wire.FAILED else log.info
        note("pull ended", **told)


def is_same(one: wire.Pull, other: wire.Pull) -> bool:
    return _key("", one) == _key("", other)


def _key(node: str, pull: wire.Pull) -> tuple[str | None, ...]:
    """What tells pulls apart: of one model there may be several, in another precision each."""
    return node, pull.id, pull.source, pull.quant


def pull_request(
    resolved: Resolved, revision: str | None, quant: str | None, verify: bool
) -> wire.PullRequest:
    """What a neuron is asked for: the catalogue says where the files of a model are."""
    entry = resolved.entry
    source = (entry.source if entry is not None else None) or resolved.model
    if revision is not None:
        if "@" in source:
            raise BadRequest(f"{clip(source)} names a revision already", param="revision")
        source = f"{source}@{revision}"
    if quant is None and entry is not None:
        quant = entry.quant
    return wire.PullRequest(resolved.model, source, quant, verify)


def _lost(pull: wire.Pull, why: str) -> wire.Pull:
    return attrs.evolve(pull, status=wire.FAILED, error=why)


def _failed(request: wire.PullRequest, why: str) -> wire.Pull:
    return wire.Pull(request.model_id, wire.FAILED, request.source, request.quant, error=why)
