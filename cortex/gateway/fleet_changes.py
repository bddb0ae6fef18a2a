"""Events from snapshots: what has changed between two pictures of the fleet.

This is the one place where node and model events come from: whoever loads, unloads or polls only
changes the fleet, and a change that another gateway made is seen like one of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.wire import neuron as wire

DRAINING = "draining"
PROGRESS_STEPS = 20  # of a stage that are told: each poll's would fill the log

Change = tuple[str, dict[str, Any]]  # kind and fields
Picture = Mapping[str, NodeSnapshot]


def picture(nodes: Iterable[NodeSnapshot]) -> dict[str, NodeSnapshot]:
    return {node.name: node for node in nodes}


def changes(before: Picture, after: Picture) -> list[Change]:
    """The events that lead from *before* to *after*, node by node."""
    found: list[Change] = []
    for name, node in after.items():
        known = before.get(name)
        if known is node:
            continue
        if known is None:
            found.append(("node_added", {"node": name, "endpoint": node.endpoint}))
            known = NodeSnapshot(name, node.endpoint)
        found += _node_changes(known, node)
        found += _model_changes(known, node)
    found += [("node_removed", {"node": name}) for name in before if name not in after]
    return found


def progress_of(model: wire.Model) -> dict[str, Any]:
    """``{stage, progress, eta}`` of a load as far as known: a part from 0 to 1, and seconds."""
    progress = model.progress
    if progress is None:
        return {}
    told: dict[str, Any] = {"stage": progress.stage}
    if progress.bytes_total:
        told["progress"] = round(min(1.0, progress.bytes_done / progress.bytes_total), 4)
    if progress.eta_seconds is not None:
        told["eta"] = round(progress.eta_seconds, 1)
    return told


async def watch(fleet: Fleet, events: EventLog) -> NoReturn:
    """Publish the fleet's changes until cancelled."""
    seen = picture(fleet.nodes())
    while True:
        await fleet.wait_changed()
        now = picture(fleet.nodes())
        for kind, fields in changes(seen, now):
            events.publish(kind, **fields)
        seen = now


def _node_changes(before: NodeSnapshot, after: NodeSnapshot) -> list[Change]:
    found: list[Change] = []
    if after.healthy and (not before.healthy or after.spell != before.spell):
        found.append(("node_up", {"node": after.name, "version": after.version}))
    elif before.healthy and not after.healthy:
        found.append(("node_down", {"node": after.name, "error": after.error}))
    if _status(after) == DRAINING != _status(before):
        found.append(("node_draining", {"node": after.name}))
    return found


def _status(node: NodeSnapshot) -> str | None:
    return node.health.status if node.healthy and node.health is not None else None


def _model_changes(before: NodeSnapshot, after: NodeSnapshot) -> list[Change]:
    known = {model.id: model for model in before.models}
    listed = {model.id for model in after.models}
    found: list[Change] = []
    for model in after.models:
        found += _model_change(after.name, known.get(model.id), model)
    found += [
        ("model_unloaded", {"node": after.name, "model": model_id})
        for model_id, model in known.items()
        if model_id not in listed and model.status != wire.FAILED  # that one was told already
    ]
    return found


def _model_change(node: str, before: wire.Model | None, after: wire.Model) -> list[Change]:
    fields: dict[str, Any] = {"node": node, "model": after.id}
    if before is None or before.status != after.status:
        if after.status == wire.LOADING:
            fields |= progress_of(after)
        elif after.status == wire.FAILED:
            fields["error"] = after.error
        return [(f"model_{after.status}", fields)]
    if after.status == wire.LOADING and _has_moved(progress_of(before), progress_of(after)):
        return [("model_loading", fields | progress_of(after))]
    return []


def _has_moved(before: dict[str, Any], after: dict[str, Any]) -> bool:
    if before.get("stage") != after.get("stage"):
        return True
    # By steps of the stage, not by the distance: a slow load moves little from poll to poll.
    return _step(before) != _step(after)


def _step(told: dict[str, Any]) -> int:
    return int(told.get("progress", 0.0) * PROGRESS_STEPS)
