"""The neurons of a configuration as they are now, asked by the command line. Bounded; no torch."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import attrs

from cortex.cli.doctor.peer import Heard, ask
from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import OPENAI, NeuronNode
from cortex.errors import BadRequest, CortexError
from cortex.gateway import foreign
from cortex.gateway.fleet import NodeSnapshot
from cortex.wire import neuron as wire
from cortex.wire.converter import structure

T = TypeVar("T")

AT_ONCE = 16  # neurons asked side by side
NO_SUCH_ROUTE = frozenset({404, 405, 501})
ESTIMATE_SECONDS = 60.0  # a neuron may have to fetch a model's headers


@attrs.frozen
class Seen:
    """A neuron: how it answered its first question, and what it is where it answered well."""

    node: NeuronNode
    heard: Heard
    snapshot: NodeSnapshot
    version: str | None = None


def look(nodes: Sequence[NeuronNode]) -> tuple[Seen, ...]:
    """Ask each of *nodes*, side by side."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(_look, nodes))


def estimates(
    entries: Sequence[CatalogueEntry], seen: Sequence[Seen]
) -> dict[str, wire.Estimate | str]:
    """By model, what the first neuron that can tell says a load would take, or why none could."""
    able = [each.node for each in seen if each.snapshot.healthy and each.snapshot.lifecycle]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(partial(_estimate, able), entries)
        return dict(zip((entry.id for entry in entries), found, strict=True))


def _look(node: NeuronNode) -> Seen:
    if node.kind == OPENAI:
        return _look_at_foreign(node)
    unknown = NodeSnapshot(node.name, node.endpoint)
    asking = _asking(node)
    base = node.endpoint.rstrip("/")
    heard = asking(f"{base}/health", token=node.token)
    health = _typed(heard.body, wire.Health) if heard.good else None
    if health is None:
        if heard.good:
            heard = Heard(error="what answers there is no neuron")
        return Seen(node, heard, unknown)
    discovery = _typed(asking(f"{base}/discovery", token=node.token).body, wire.Discovery)
    version = _typed(asking(f"{base}/version", token=node.token).body, wire.Version)
    listed = asking(f"{base}/models", token=node.token).body
    models = [_typed(each, wire.Model) for each in listed] if isinstance(listed, list) else []
    snapshot = attrs.evolve(
        unknown,
        healthy=True,
        health=health,
        discovery=discovery,
        models=tuple(model for model in models if model is not None),
    )
    return Seen(node, heard, snapshot, None if version is None else version.version)


def _look_at_foreign(node: NeuronNode) -> Seen:
    """A server of another make tells what it lists, or that it has no list."""
    unknown = NodeSnapshot(node.name, node.endpoint, lifecycle=False)
    url = foreign.base_url(node.endpoint) + foreign.MODELS_PATH
    heard = _asking(node)(url, headers=foreign.headers_for(node))
    try:
        if heard.good:
            models = foreign.models_of(node, heard.body)
        elif heard.status in NO_SUCH_ROUTE and node.models is not None:
            models = foreign.mapped_models(node)
        else:
            return Seen(node, heard, unknown)
    except CortexError as exc:
        return Seen(node, Heard(error=exc.message), unknown)
    return Seen(node, heard, attrs.evolve(unknown, healthy=True, models=models))


def _estimate(nodes: Sequence[NeuronNode], entry: CatalogueEntry) -> wire.Estimate | str:
    allowed = [node for node in nodes if not entry.pinned_on or node.name in entry.pinned_on]
    asked = {
        "model_id": entry.id,
        **{
            name: value
            for name in ("source", "harness", "quant", "context", "tensor_parallel", "tool_format")
            if (value := getattr(entry, name)) is not None
        },
    }
    reason = "no neuron that may have it answers"
    for node in allowed:
        url = f"{node.endpoint.rstrip('/')}/models/estimate"
        heard = _asking(node)(url, token=node.token, body=asked, seconds=ESTIMATE_SECONDS)
        estimate = _typed(heard.body, wire.Estimate) if heard.good else None
        if estimate is not None:
            return estimate
        reason = f"{node.name}: {heard.reason}"
    return reason


def _asking(node: NeuronNode) -> Callable[..., Heard]:
    """Trusts whom the gateway trusts: the system's authorities."""
    secure = node.endpoint.startswith("https:")
    return partial(ask, verify=ssl.create_default_context() if secure else True)


def _typed(value: Any, cls: type[T]) -> T | None:
    try:
        return structure(value, cls)
    except BadRequest:
        return None
