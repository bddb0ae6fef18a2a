"""What a fleet as it is now would do for each model of a catalogue, by the gateway's own placement.

Each model is looked at by itself, as if it were asked for now and no other; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cortex.cli import live
from cortex.cli.live import Seen
from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import EvictionSettings, GatewayConfig
from cortex.gateway.eviction import Resident, rank_of
from cortex.gateway.fleet import NodeSnapshot
from cortex.gateway.model_costs import ModelCosts
from cortex.gateway.placement import Demand, Hold, Placement, Site, place
from cortex.wire import neuron as wire

Json = dict[str, Any]


def ask(config: GatewayConfig, catalogue: Catalogue) -> Json:
    """``nodes`` and ``models`` as they are found. Bounded."""
    seen = live.look(config.neurons)
    costs, reasons = ModelCosts(), {}
    unsized = [entry for entry in catalogue.models.values() if entry.vram_mb is None]
    for model, estimate in live.estimates(unsized, seen).items():
        if isinstance(estimate, str):
            reasons[model] = estimate
        else:
            costs.estimated(model, estimate)
    entries = catalogue.models.values()
    return {
        "nodes": [_node(each) for each in seen],
        "models": [
            _without_none(
                {
                    **planned(entry, catalogue, seen, costs, config.eviction),
                    "estimate_error": reasons.get(entry.id),
                }
            )
            for entry in entries
        ],
    }


def planned(
    entry: CatalogueEntry,
    catalogue: Catalogue,
    seen: Sequence[Seen],
    costs: ModelCosts,
    rules: EvictionSettings,
) -> Json:
    """What would happen to who asks for the model now. Pure."""
    nodes = [each.snapshot for each in seen]
    there = [
        node.name
        for node in nodes
        for model in node.models
        if model.id == entry.id and model.status == wire.LOADED and node.serving
    ]
    totals = [
        device.vram_total_mb
        for node in nodes
        for device in (node.discovery.devices if node.discovery is not None else ())
        if device.vram_total_mb is not None
    ]
    mb = costs.fitting_mb(entry.id, entry, max(totals, default=None))
    told: Json = {"model": entry.id, "needed_mb": mb}
    if there:
        return {**told, "plan": "loaded", "nodes": there}
    sites = [Site(node, _residents(node, catalogue, costs)) for node in nodes]
    decision = place(Demand(entry, mb, 0.0, 0.0, rank_of(entry)), sites, rules)
    if isinstance(decision, Placement):
        return {
            **told,
            "plan": "load",
            "nodes": [decision.node],
            "devices": list(decision.devices or ()),
            "free_mb": decision.free_mb,
            "evicts": list(decision.victims),
        }
    if isinstance(decision, Hold):
        return {**told, "plan": "wait", "detail": decision.detail}
    return {**told, "plan": decision.reason.value, "detail": decision.detail}


def sentences(found: Json) -> list[str]:
    return [*map(_node_words, found["nodes"]), *map(_model_words, found["models"])]


def _residents(node: NodeSnapshot, catalogue: Catalogue, costs: ModelCosts) -> tuple[Resident, ...]:
    """As the gateway sees them, but for what only it remembers: when they were loaded and used."""
    busy = {load.id: load for load in (node.health.models if node.health is not None else ())}
    every = node.discovery.devices if node.discovery is not None else ()
    found = []
    for model in node.models:
        if model.status != wire.LOADED:
            continue
        entry, load = catalogue.models.get(model.id), busy.get(model.id)
        found.append(
            Resident(
                model.id,
                frozenset(model.devices or (device.index for device in every)),
                costs.resident_mb(model, entry),
                rank=rank_of(entry),
                requests=0 if load is None else load.in_flight + load.queue_depth,
                held=entry is None or node.name in entry.pinned_on,
            )
        )
    return tuple(found)


def _node(seen: Seen) -> Json:
    error = None if seen.snapshot.healthy else seen.heard.reason
    return _without_none(
        {
            "node": seen.node.name,
            "healthy": seen.snapshot.healthy,
            "version": seen.version,
            "error": error,
            "loaded": [m.id for m in seen.snapshot.models if m.status == wire.LOADED],
        }
    )


def _node_words(node: Json) -> str:
    if not node["healthy"]:
        return f"{node['node']} does not answer: {node['error']}."
    loaded = ", ".join(node["loaded"]) or "nothing"
    return f"{node['node']} answers and has {loaded} loaded."


def _model_words(model: Json) -> str:
    name, plan = model["model"], model["plan"]
    if plan == "loaded":
        return f"{name} is loaded on {', '.join(model['nodes'])}."
    if plan != "load":
        how = {"wait": "would wait", "nowhere": "can be loaded nowhere"}
        return f"{name} {how.get(plan, 'cannot be loaded now')}: {model['detail']}."
    devices = ", ".join(map(str, model["devices"]))
    room = [
        *([f"{model['needed_mb']} MiB needed"] if "needed_mb" in model else ["its size unknown"]),
        *([f"{model['free_mb']} MiB free"] if "free_mb" in model else []),
        *([f"after {', '.join(model['evicts'])} has left"] if model["evicts"] else []),
    ]
    return (
        f"{name} would be loaded on {model['nodes'][0]}"
        + (f", device {devices}" if devices else "")
        + f" ({', '.join(room)})."
    )


def _without_none(fields: Json) -> Json:
    return {key: value for key, value in fields.items() if value is not None}
