"""Where a model could be loaded. Pure: values in, a decision with its reason out.

A node is feasible when its devices could ever hold the model: enough of them, each above the
catalogue's floor, on a node the model may run on. Among feasible, healthy nodes those come first
whose free memory is known to suffice, then those of which it is not known; then the one with most
free memory, then the name. A measurement that is missing is not zero: it neither rules a node out
nor puts it before one that was measured.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import attrs

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.fleet import NodeSnapshot
from cortex.wire import neuron as wire

SUPPORTED_WIDTH = 1  # devices one model is spread over; more comes with tensor parallelism


@attrs.frozen
class Placement:
    """Load it on ``node``, on ``devices`` (None leaves the choice to the neuron)."""

    node: str
    devices: tuple[int, ...] | None
    free_mb: int | None  # on these devices together


class Reason(enum.Enum):
    NOWHERE = "nowhere"  # no node could ever hold it
    UNHEALTHY = "unhealthy"  # nodes that could hold it are not reachable now
    FULL = "full"  # nodes that could hold it have no room now


@attrs.frozen
class Refusal:
    reason: Reason
    detail: str


@attrs.frozen
class _Room:
    """One device: what it has and, as far as known, what is free, in MiB."""

    index: int
    total_mb: int | None
    free_mb: int | None
    ok: bool


def width(entry: CatalogueEntry | None) -> int:
    """How many devices the model is spread over."""
    if entry is None:
        return 1
    return entry.tensor_parallel or entry.min_devices


def infeasible(entry: CatalogueEntry | None, node: NodeSnapshot) -> str | None:
    """Why *node* could never hold the model, None when it could or is not known well enough."""
    if entry is None:
        return None
    if entry.pinned_on and node.name not in entry.pinned_on:
        return f"{node.name}: the model is pinned on {', '.join(entry.pinned_on)}"
    if width(entry) > SUPPORTED_WIDTH:
        return f"{node.name}: tensor parallelism over {width(entry)} devices is not supported"
    if node.discovery is None:
        return None
    able = [device for device in node.discovery.devices if _could_hold(entry, device)]
    needed = max(width(entry), entry.min_devices)
    if len(able) >= needed:
        return None
    floor = max(entry.min_device_vram_mb or 0, _share(entry) or 0)
    roomiest = max((device.vram_total_mb or 0 for device in node.discovery.devices), default=0)
    return (
        f"{node.name}: {len(able)} of its devices have {floor} MiB, {needed} needed; "
        f"the largest has {roomiest} MiB"
    )


def feasible_on(entry: CatalogueEntry | None, nodes: Iterable[NodeSnapshot]) -> tuple[str, ...]:
    """Names of the nodes known to be able to hold the model."""
    return tuple(
        node.name
        for node in nodes
        if node.discovery is not None and infeasible(entry, node) is None
    )


def place(
    entry: CatalogueEntry | None,
    nodes: Sequence[NodeSnapshot],
    *,
    promised_mb: Mapping[str, int] | None = None,
    exclude: frozenset[str] = frozenset(),
) -> Placement | Refusal:
    """The best node for *entry* (None: a model of which nothing is known), or why there is none.

    *promised_mb* is what loads under way on a node will still take of its free memory. Nodes in
    *exclude* are passed over as if they had no room.
    """
    reasons = {node.name: infeasible(entry, node) for node in nodes}
    feasible = [node for node in nodes if reasons[node.name] is None]
    if not feasible:
        told = "; ".join(reason for reason in reasons.values() if reason)
        return Refusal(Reason.NOWHERE, told or "no neuron is configured")
    reachable = [node for node in feasible if node.serving and node.discovery is not None]
    if not reachable:
        names = ", ".join(node.name for node in feasible)
        return Refusal(Reason.UNHEALTHY, f"not reachable now: {names}")
    ranked: list[tuple[tuple[bool, int, str], Placement]] = []
    full: list[str] = []
    for node in reachable:
        if node.name in exclude:
            full.append(f"{node.name}: tried already")
            continue
        found = _on_node(entry, node, (promised_mb or {}).get(node.name, 0))
        if isinstance(found, str):
            full.append(found)
            continue
        known = found.free_mb is not None
        ranked.append(((not known, -(found.free_mb or 0), node.name), found))
    if not ranked:
        return Refusal(Reason.FULL, "; ".join(full))
    return min(ranked, key=lambda item: item[0])[1]


def _share(entry: CatalogueEntry) -> int | None:
    """MiB the model takes on each of its devices."""
    return None if entry.vram_mb is None else -(-entry.vram_mb // width(entry))


def _could_hold(entry: CatalogueEntry, device: wire.Device) -> bool:
    if device.vram_total_mb is None:
        return True
    floor = max(entry.min_device_vram_mb or 0, _share(entry) or 0)
    return device.vram_total_mb >= floor


def _on_node(entry: CatalogueEntry | None, node: NodeSnapshot, promised_mb: int) -> Placement | str:
    """The freest devices of *node*, or what it lacks."""
    rooms = [
        attrs.evolve(room, free_mb=max(0, room.free_mb - promised_mb))
        if room.free_mb is not None
        else room
        for room in _rooms(node)
        if room.ok and (entry is None or _could_hold(entry, _as_device(room)))
    ]
    count = width(entry)
    if len(rooms) < count:
        return f"{node.name}: {len(rooms)} of {count} devices are in working order"
    rooms.sort(key=lambda room: (room.free_mb is None, -(room.free_mb or 0), room.index))
    chosen = rooms[:count]
    measured = [room.free_mb for room in chosen if room.free_mb is not None]
    share = None if entry is None else _share(entry)
    if share is not None and measured and min(measured) < share:
        unmeasured = [room for room in rooms if room.free_mb is None]
        if len(unmeasured) < count:
            return f"{node.name}: {share} MiB needed, {min(measured)} MiB free"
        chosen, measured = unmeasured[:count], []
    free = sum(measured) if len(measured) == count else None
    return Placement(node.name, tuple(room.index for room in chosen), free)


def _as_device(room: _Room) -> wire.Device:
    return wire.Device(room.index, "", vram_total_mb=room.total_mb)


def _rooms(node: NodeSnapshot) -> list[_Room]:
    devices = node.discovery.devices if node.discovery is not None else ()
    measured = {} if node.health is None else {each.index: each for each in node.health.devices}
    rooms = []
    for device in devices:
        state = measured.get(device.index)
        free = None if state is None else state.vram_free_mb
        rooms.append(_Room(device.index, device.vram_total_mb, free, state is None or state.ok))
    return rooms
