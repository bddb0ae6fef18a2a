"""What an operator sees of the fleet: the body of ``/fleet``, from snapshots. What is not known is
left out, never zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from cortex.config.gateway import CORTEX, OPENAI
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.gateway.fleet_changes import progress_of
from cortex.gateway.pins import Pins
from cortex.wire import neuron as wire

UNREACHABLE = "unreachable"  # the status of what is on a node that is not healthy

Json = dict[str, Any]


@attrs.frozen(eq=False)
class FleetView:
    """*expires_in* says in how many seconds an idle model goes, None for one that stays."""

    fleet: Fleet
    pins: Pins
    is_pinned: Callable[[str, str], bool]  # node and model, by order or by the catalogue
    expires_in: Callable[[str, str], float | None]  # likewise
    waiting: Callable[[str], int]  # requests that wait for a model in the gateway
    model_ids: Callable[[], Iterable[str]]  # all there are

    def body(self) -> Json:
        """Each node with its devices and models, the requests that wait in the gateway by model,
        and the pins that were set at run time."""
        waiting = {model: self.waiting(model) for model in self.model_ids()}
        return {
            "nodes": [self._node(node) for node in self.fleet.nodes()],
            "waiting": {model: count for model, count in waiting.items() if count},
            "pins": [_without_none(model=pin.model, node=pin.node) for pin in self.pins.all()],
        }

    def _node(self, node: NodeSnapshot) -> Json:
        return {
            "name": node.name,
            "endpoint": node.endpoint,
            "kind": CORTEX if node.lifecycle else OPENAI,
            "healthy": node.healthy,
            "status": node.health.status if node.healthy and node.health else UNREACHABLE,
            "error": node.error,
            "circuit": node.circuit,
            "version": node.version,
            "devices": _devices(node),
            "models": [self._model(node, model) for model in node.models],
        }

    def _model(self, node: NodeSnapshot, model: wire.Model) -> Json:
        expires_in = self.expires_in(node.name, model.id)
        busy = _busy(node, model.id)
        return _without_none(
            id=model.id,
            status=model.status if node.healthy else UNREACHABLE,
            devices=list(model.devices),
            vram_used_mb=model.vram_used_mb,
            quant=model.quant,
            dtype=model.dtype,
            context=model.limit.context if model.limit is not None else None,
            in_flight=self.fleet.load_of(node.name, model.id),
            max_in_flight=busy.max_in_flight if busy is not None else None,
            queue_depth=busy.queue_depth if busy is not None else None,
            tok_s_prefill=busy.tok_s_prefill if busy is not None else None,
            tok_s_decode=busy.tok_s_decode if busy is not None else None,
            pinned=self.is_pinned(node.name, model.id),
            expires_in=None if expires_in is None else round(expires_in, 1),
            progress=_progress(model),
            loading=progress_of(model) or None,
            error=model.error,
        )


def _busy(node: NodeSnapshot, model_id: str) -> wire.ModelLoad | None:
    if not node.healthy or node.health is None:
        return None
    return next((load for load in node.health.models if load.id == model_id), None)


def _progress(model: wire.Model) -> Json | None:
    """A load's progress in the neuron's own words."""
    if model.progress is None:
        return None
    return _without_none(
        stage=model.progress.stage,
        bytes_done=model.progress.bytes_done,
        bytes_total=model.progress.bytes_total,
        eta_seconds=model.progress.eta_seconds,
    )


def _devices(node: NodeSnapshot) -> list[Json]:
    known = node.discovery.devices if node.discovery is not None else ()
    measured = {} if node.health is None else {each.index: each for each in node.health.devices}
    found: list[Json] = []
    for device in known:
        state = measured.get(device.index)
        found.append(
            _without_none(
                index=device.index,
                name=device.name,
                kind=device.kind,
                vram_total_mb=device.vram_total_mb,
                vram_used_mb=state and state.vram_used_mb,
                vram_free_mb=state and state.vram_free_mb,
                utilization_pct=state and state.utilization_pct,
                temp_c=state and state.temp_c,
                ok=state.ok if state is not None else None,
                reason=state and state.reason,
            )
        )
    return found


def _without_none(**fields: Any) -> Json:
    return {key: value for key, value in fields.items() if value is not None}
