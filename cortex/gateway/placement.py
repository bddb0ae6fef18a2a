"""Where a model could be loaded, and at whose expense. Pure: values in, a decision with its reason
out.

A node is feasible when one of its devices could ever hold the model: large enough, on a node the
model may run on. Among feasible, healthy nodes those come first whose free memory is known to
suffice (of those where loading takes about as short a time as anywhere, the one with most of it),
then those of which it is not known, then those where it would suffice if idle models left. If only
a busy model, or one that has just been loaded, could make room, its turn comes after a bounded
wait. A measurement that is missing is not zero: it neither rules a node out nor puts it before one
that was measured.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings
from cortex.gateway.eviction import (
    DEFAULT_RANK,
    Resident,
    displaceable,
    free_from,
    hand_over_from,
    loss,
    victims,
    worth,
)
from cortex.gateway.fleet import NodeSnapshot
from cortex.wire import neuron as wire

SUPPORTED_WIDTH = 1  # devices one model is spread over; more comes with tensor parallelism
AS_FAST = 2.0  # loading times within this factor are as good as each other


@attrs.frozen
class Demand:
    """A model somebody waits for, since ``since``. ``mb`` is None where its size is not known."""

    entry: CatalogueEntry | None
    mb: int | None
    now: float
    since: float
    rank: int = DEFAULT_RANK


@attrs.frozen
class Site:
    """A node as placement sees it.

    ``taken`` are devices on which another load or unload is under way, ``promised_mb`` what models
    will take of a device that its measurement does not show yet. ``stale`` means that a model has
    come or left since memory was measured, ``leaving`` that the model is there, and is to make room
    for another first. ``seconds`` is how long loading the model would take
    there; None when nothing is known of that.
    """

    node: NodeSnapshot
    residents: tuple[Resident, ...] = ()
    taken: frozenset[int] = frozenset()
    promised_mb: Mapping[int, int] = attrs.field(factory=dict)
    stale: bool = False
    leaving: bool = False
    seconds: float | None = None


@attrs.frozen
class Placement:
    """Load it on ``node``, on ``devices`` (None leaves the choice to the neuron), once ``victims``
    have left. With ``hand_over`` some of them are busy, and are let finish first."""

    node: str
    devices: tuple[int, ...] | None
    free_mb: int | None  # on these devices, before anybody leaves
    victims: tuple[str, ...] = ()
    hand_over: bool = False


@attrs.frozen
class Hold:
    """Not now, but later: at ``until`` at the latest, if nothing happens before."""

    until: float
    detail: str


class Reason(enum.Enum):
    NOWHERE = "nowhere"  # no node could ever hold it
    UNHEALTHY = "unhealthy"  # nodes that could hold it are not reachable now
    FULL = "full"  # nodes that could hold it have no room, and nobody there may leave


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


@attrs.frozen
class _Option:
    """A placement and its rank among others, the least being best."""

    rank: tuple[float, ...]
    placement: Placement


def width(entry: CatalogueEntry | None) -> int:
    """How many devices the model is spread over."""
    if entry is None:
        return 1
    return entry.tensor_parallel or entry.min_devices


def may_serve(entry: CatalogueEntry | None, node: NodeSnapshot) -> bool:
    """Whether requests for the model may go to *node* at all: what is pinned elsewhere is not for
    a server of another make, whatever that one lists."""
    pinned = entry.pinned_on if entry is not None else ()
    return node.lifecycle or not pinned or node.name in pinned


def loads_nowhere(entry: CatalogueEntry, nodes: Iterable[NodeSnapshot]) -> bool:
    """Whether all nodes that the model may run on are servers of another make."""
    allowed = [node for node in nodes if not entry.pinned_on or node.name in entry.pinned_on]
    return bool(allowed) and not any(node.lifecycle for node in allowed)


def infeasible(
    entry: CatalogueEntry | None, node: NodeSnapshot, mb: int | None = None
) -> str | None:
    """Why *node* could never hold the model, None when it could or is not known well enough.

    *mb* is what is known of its size, if that is more than the catalogue says.
    """
    if not node.lifecycle:
        return f"{node.name}: loads nothing on request"
    if entry is not None and entry.pinned_on and node.name not in entry.pinned_on:
        return f"{node.name}: the model is pinned on {', '.join(entry.pinned_on)}"
    if width(entry) > SUPPORTED_WIDTH:
        return f"{node.name}: tensor parallelism over {width(entry)} devices is not supported"
    if node.discovery is None:
        return None
    floor = _floor(entry, mb)
    needed = max(width(entry), entry.min_devices if entry is not None else 1)
    totals = [device.vram_total_mb for device in node.discovery.devices]
    able = sum(total is None or total >= floor for total in totals)
    if able >= needed:
        return None
    roomiest = max((total or 0 for total in totals), default=0)
    return (
        f"{node.name}: {able} of its devices have {floor} MiB, {needed} needed; "
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
    demand: Demand,
    sites: Sequence[Site],
    rules: EvictionSettings,
    *,
    exclude: frozenset[str] = frozenset(),
) -> Placement | Hold | Refusal:
    """The best place for what is demanded, until when to wait for one, or why there is none.

    Nodes in *exclude* are passed over as if they had no room.
    """
    reasons = {site.node.name: infeasible(demand.entry, site.node, demand.mb) for site in sites}
    feasible = [site for site in sites if reasons[site.node.name] is None]
    if not feasible:
        told = "; ".join(reason for reason in reasons.values() if reason)
        return Refusal(Reason.NOWHERE, told or "no neuron is configured")
    reachable = [site for site in feasible if site.node.serving and site.node.discovery is not None]
    if not reachable:
        names = ", ".join(site.node.name for site in feasible)
        return Refusal(Reason.UNHEALTHY, f"not reachable now: {names}")
    options: list[_Option] = []
    holds: list[Hold] = []
    full: list[str] = []
    for site in reachable:
        if site.node.name in exclude:
            full.append(f"{site.node.name}: tried already")
            continue
        if site.leaving:
            holds.append(Hold(math.inf, f"{site.node.name}: it makes room for another there"))
            continue
        for found in _on_site(demand, site, rules):
            if isinstance(found, str):
                full.append(found)
            elif isinstance(found, Hold):
                holds.append(found)
            else:
                options.append(found)
    if options:
        return _best(options)
    if holds:
        return min(holds, key=lambda hold: hold.until)
    return Refusal(Reason.FULL, "; ".join(full))


def _best(options: list[_Option]) -> Placement:
    """Of those that are free, the freest where loading is about as fast as anywhere."""
    tier = min(option.rank[0] for option in options)
    best = [option for option in options if option.rank[0] == tier]
    if tier == _FREE:
        fastest = min(option.rank[1] for option in best)
        best = [option for option in best if option.rank[1] <= fastest * AS_FAST]
        return min(best, key=lambda o: (o.rank[2:], o.placement.node)).placement
    return min(best, key=lambda o: (o.rank[1:], o.placement.node)).placement


_FREE, _UNMEASURED, _BY_EVICTION, _BY_HAND_OVER = 0.0, 1.0, 2.0, 3.0


def _on_site(demand: Demand, site: Site, rules: EvictionSettings) -> Iterator[_Option | Hold | str]:
    """For each device of *site*: how the model could come to be there, or what is in the way."""
    node, floor = site.node, _floor(demand.entry, demand.mb)
    rooms = [
        room
        for room in _rooms(node, site.promised_mb)
        if room.ok and (room.total_mb is None or room.total_mb >= floor)
    ]
    if not rooms:
        yield f"{node.name}: none of the devices that are large enough is in working order"
    seconds = site.seconds if site.seconds is not None else 0.0
    for room in rooms:
        index, free = room.index, room.free_mb
        if index in site.taken:
            yield Hold(math.inf, f"{node.name}: another model is being loaded or unloaded")
        elif free is None:
            placement = Placement(node.name, (index,), None)
            yield _Option((_UNMEASURED, seconds, index), placement)
        elif demand.mb is None or free >= demand.mb:
            placement = Placement(node.name, (index,), free)
            yield _Option((_FREE, seconds, -free, index), placement)
        elif site.stale:
            yield Hold(math.inf, f"{node.name}: memory is being measured")
        else:
            yield _by_eviction(demand, site, room, demand.mb - free, rules)


def _by_eviction(
    demand: Demand, site: Site, room: _Room, shortage_mb: int, rules: EvictionSettings
) -> _Option | Hold | str:
    """Room on one device by having others leave: now, by a hand-over, or later."""
    name, now = site.node.name, demand.now
    there = [
        each
        for each in site.residents
        if room.index in each.devices
        and not each.devices & site.taken
        and displaceable(each, demand.rank, rules)
    ]
    ready = [each for each in there if free_from(each, rules) <= now]
    chosen = victims(ready, shortage_mb, now, rules)
    if chosen is not None:
        return _evicting(_BY_EVICTION, chosen, site, room, now, rules)
    due = [each for each in there if hand_over_from(each, demand.since, rules) <= now]
    chosen = victims([*{*ready, *due}], shortage_mb, now, rules)
    if chosen is not None:
        return _evicting(_BY_HAND_OVER, chosen, site, room, now, rules)
    chosen = victims(there, shortage_mb, now, rules)
    if chosen is None:
        needed, free = demand.mb, room.free_mb
        return f"{name}: {needed} MiB needed, {free} MiB free"
    until = max(_earliest(each, demand.since, rules) for each in chosen)
    return Hold(until, f"{name}: in use: {', '.join(each.model for each in chosen)}")


def _evicting(
    tier: float,
    chosen: tuple[Resident, ...],
    site: Site,
    room: _Room,
    now: float,
    rules: EvictionSettings,
) -> _Option:
    requests = float(sum(each.requests for each in chosen))
    rank = max(worth(each, now, rules)[1] for each in chosen)
    cost = (site.seconds or 0.0) + sum(loss(each, now) for each in chosen)
    placement = Placement(
        site.node.name,
        (room.index,),
        room.free_mb,
        tuple(each.model for each in chosen),
        hand_over=tier == _BY_HAND_OVER,
    )
    return _Option((tier, requests, rank, cost, len(chosen), room.index), placement)


def _earliest(resident: Resident, since: float, rules: EvictionSettings) -> float:
    return min(free_from(resident, rules), hand_over_from(resident, since, rules))


def _floor(entry: CatalogueEntry | None, mb: int | None) -> int:
    """MiB a device must have."""
    declared = (entry.vram_mb or 0, entry.min_device_vram_mb or 0) if entry is not None else ()
    return max(*declared, mb or 0) if declared else mb or 0


def _rooms(node: NodeSnapshot, promised_mb: Mapping[int, int]) -> list[_Room]:
    devices = node.discovery.devices if node.discovery is not None else ()
    measured: dict[int, wire.DeviceHealth] = {}
    if node.health is not None:
        measured = {each.index: each for each in node.health.devices}
    rooms = []
    for device in devices:
        state = measured.get(device.index)
        free = None if state is None else state.vram_free_mb
        if free is not None:
            free = max(0, free - promised_mb.get(device.index, 0))
        rooms.append(_Room(device.index, device.vram_total_mb, free, state is None or state.ok))
    return rooms
