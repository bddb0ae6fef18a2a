"""What the gateway says of its models and nodes: pure functions from snapshots to JSON bodies.

Catalogue and fleet are merged: a model is listed when either knows it, also while every node that
holds it is away. What is not known is left out, never zero.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet, NodeSnapshot, Replica
from cortex.gateway.fleet_changes import progress_of
from cortex.gateway.placement import feasible_on, may_serve
from cortex.wire import neuron as wire

OWNER = "cortex"
UNLOADED = "unloaded"
UNREACHABLE = "unreachable"  # a location whose node is not healthy
# A model's status over its replicas: the first of these that one of them has.
PRECEDENCE = (wire.LOADED, wire.RECOVERING, wire.LOADING, wire.UNLOADING, wire.FAILED)

Json = dict[str, Any]


def entries(names: ModelNames, fleet: Fleet) -> list[Json]:
    """What is told of every model, then of every alias."""
    found = [_entry(names, fleet, model_id, model_id) for model_id in names.model_ids()]
    found += [
        _entry(names, fleet, alias, target) for alias, target in names.catalogue.aliases.items()
    ]
    return found


def model(names: ModelNames, fleet: Fleet, name: str) -> Json | None:
    """The body of ``/v1/models/{name}``, None when nothing answers to *name*."""
    target = names.target(name)
    if target not in names.catalogue.models and not fleet.replicas(target):
        return None
    return _entry(names, fleet, name, target)


def health(fleet: Fleet) -> Json:
    """The body of ``/health``. Degraded: a node is away or ailing, or a model serves nothing."""
    nodes = fleet.nodes()
    healthy = [node for node in nodes if node.healthy]
    unservable = [
        _without_none(
            node=node.name,
            model=model.id,
            reason=model.servable.reason,
            detail=model.servable.detail,
        )
        for node in healthy
        for model in node.models
        if model.status == wire.LOADED and model.servable is not None and not model.servable.ok
    ]
    impaired = sum(_impaired(node) for node in healthy)
    fine = len(healthy) == len(nodes) and not impaired and not unservable
    return {
        "status": "ok" if fine else "degraded",
        "nodes": {"healthy": len(healthy), "total": len(nodes), "impaired": impaired},
        "unservable": unservable,
    }


def _impaired(node: NodeSnapshot) -> bool:
    """Whether a healthy node is at less than its full strength."""
    if node.health is None:
        return False
    return node.health.status != "ok" or any(not device.ok for device in node.health.devices)


def _entry(names: ModelNames, fleet: Fleet, shown: str, model_id: str) -> Json:
    """The superset that OpenAI's, Anthropic's and the LiteLLM family of clients all parse."""
    entry = names.catalogue.models.get(model_id)
    replicas = [each for each in fleet.replicas(model_id) if may_serve(entry, each.node)]
    alive = [replica for replica in replicas if replica.node.healthy]
    status = _status(alive)
    limit = _limit(entry, alive)
    created = _created(replicas)
    body = _without_none(
        id=shown,
        object="model",
        created=created,
        owned_by=OWNER,
        type="model",
        display_name=shown,
        created_at=datetime.datetime.fromtimestamp(created, datetime.UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        ),
        lifecycle="active",
        alias_of=model_id if shown != model_id else None,
        loaded=status == wire.LOADED,
        status=status,
        loading=_loading(alive),
        feasible_on=_feasible_on(entry, fleet, replicas) if entry is not None else None,
        locations=[_location(entry, replica) for replica in replicas],
        capabilities=_capabilities(entry, alive),
        limit=limit or None,
        cost=entry.cost if entry is not None else None,
        tool_call=_any(replica.model.tool_call for replica in alive),
        reasoning=_any(replica.model.reasoning for replica in alive),
    )
    return body | _flat_limits(limit)


def _feasible_on(entry: CatalogueEntry, fleet: Fleet, replicas: Iterable[Replica]) -> list[str]:
    """Nodes that could hold the model, and servers of another make that have it."""
    elsewhere = [each.node.name for each in replicas if not each.node.lifecycle]
    return [*feasible_on(entry, fleet.nodes()), *elsewhere]


def _status(alive: Iterable[Replica]) -> str:
    found = {replica.model.status for replica in alive}
    return next((status for status in PRECEDENCE if status in found), UNLOADED)


def _loading(alive: Iterable[Replica]) -> Json | None:
    """``{node, stage, progress, eta}`` of a load of the model, as far as known."""
    for replica in alive:
        if replica.model.status == wire.LOADING:
            return {"node": replica.node.name, **progress_of(replica.model)}
    return None


def _created(replicas: Iterable[Replica]) -> int:
    """Unix seconds at which the model was first loaded; 0 for one that never was."""
    times = [replica.model.loaded_at for replica in replicas if replica.model.loaded_at]
    return int(min(times)) if times else 0


def _location(entry: CatalogueEntry | None, replica: Replica) -> Json:
    measured = replica.model.vram_used_mb
    declared = entry.vram_mb if entry is not None else None
    return _without_none(
        node=replica.node.name,
        status=replica.model.status if replica.node.healthy else UNREACHABLE,
        vram_estimate_mb=measured if measured is not None else declared,
        progress=_progress(replica.model),
    )


def _progress(model: wire.Model) -> Json | None:
    if model.progress is None:
        return None
    return _without_none(
        stage=model.progress.stage,
        bytes_done=model.progress.bytes_done,
        bytes_total=model.progress.bytes_total,
        eta_seconds=model.progress.eta_seconds,
    )


def _capabilities(entry: CatalogueEntry | None, alive: Iterable[Replica]) -> list[str] | None:
    """What replicas report, together; what the catalogue claims only where none does."""
    found: dict[str, None] = {}
    for replica in alive:
        found.update(dict.fromkeys(replica.model.capabilities or ()))
    if not found and entry is not None:
        found.update(dict.fromkeys(entry.capabilities))
    return list(found) or None


def _limit(entry: CatalogueEntry | None, alive: Iterable[Replica]) -> dict[str, int]:
    """The tightest limits over the replicas; the catalogue's where no replica tells its own."""
    reported = [replica.model.limit for replica in alive if replica.model.limit is not None]
    if reported:
        columns: dict[str, list[int]] = {"context": [limit.context for limit in reported]}
        columns["input"] = [limit.input for limit in reported if limit.input is not None]
        columns["output"] = [limit.output for limit in reported if limit.output is not None]
        return {name: min(values) for name, values in columns.items() if values}
    if entry is None:
        return {}
    declared = dict(entry.limit or {})
    if entry.context is not None:
        declared.setdefault("context", entry.context)
    return declared


def _flat_limits(limit: dict[str, int]) -> Json:
    """The same under the names that vLLM's, LiteLLM's and Anthropic's clients read."""
    context = limit.get("context")
    return _without_none(
        max_model_len=context,
        max_input_tokens=limit.get("input", context),
        max_output_tokens=limit.get("output"),
        max_tokens=limit.get("output", context),
    )


def _any(values: Iterable[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return any(known) if known else None


def _without_none(**fields: Any) -> Json:
    return {key: value for key, value in fields.items() if value is not None}
