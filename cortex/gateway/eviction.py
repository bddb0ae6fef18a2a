"""Which models leave to make room, and when they may. Pure: values in, decisions out.

A model may go while nobody uses it, once it has had its minimum residency, and once it has been
idle for as long as the swap costs, there and back: twice the time that loading it takes. Who comes
back sooner than that was better not sent away. So two models that take turns do not chase each
other out with each request. When somebody has waited for the bounded time all the same, a model is
handed over: it is closed to newcomers and goes when the requests it has are done. Even then it has
had a part of its residency, or the fleet would only load and unload.

Held models never go: those pinned there, and those no catalogue lists, since nobody could ask for
them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings

DEFAULT_RANK = 100  # of a model without `residency_priority`, as in the original
PINNED_RANK = 1000  # of one that is pinned somewhere
LEAST_RESIDENCY = 1.0  # seconds, whatever is configured: who waited for the load gets in first
SPARE = 0.1  # how much less a model is missed while another node serves it too
THERE_AND_BACK = 2.0  # loads that a swap costs: another's, and later its own again
HORIZON_SECONDS = 600.0  # what may happen later than this does not count


@attrs.frozen
class Resident:
    """A model on a node. Times in seconds of one clock; None where they are not known."""

    model: str
    devices: frozenset[int]
    mb: int | None  # MiB it would free, on its devices together
    rank: int = DEFAULT_RANK
    requests: int = 0  # under way or queued there
    loaded_at: float | None = None
    last_used: float | None = None
    held: bool = False
    spare: bool = False  # another node serves it too
    reload_seconds: float = 0.0


def rank_of(entry: CatalogueEntry | None) -> int:
    """The residency priority that holds for a model."""
    if entry is None:
        return DEFAULT_RANK
    if entry.residency_priority is not None:
        return entry.residency_priority
    return PINNED_RANK if entry.pinned_on else DEFAULT_RANK


def displaceable(resident: Resident, rank: int, rules: EvictionSettings) -> bool:
    """Whether a model of *rank* may ever take the place of *resident*. Equal ranks may."""
    if resident.held:
        return False
    return rules.strategy != "priority" or rank >= resident.rank


def free_from(resident: Resident, rules: EvictionSettings) -> float:
    """From when on it may go as long as nobody uses it; never (infinity) while somebody does."""
    if resident.requests:
        return math.inf
    earliest = -math.inf
    if resident.loaded_at is not None:
        earliest = resident.loaded_at + max(rules.min_residency_seconds, LEAST_RESIDENCY)
    if resident.last_used is not None:
        earliest = max(earliest, resident.last_used + _grace(resident, rules))
    return earliest


def hand_over_from(resident: Resident, since: float, rules: EvictionSettings) -> float:
    """From when on it is closed for a model that has been waited for since *since*."""
    earliest = since + rules.max_wait_seconds
    if resident.loaded_at is None:
        return earliest
    least = min(rules.min_residency_seconds, rules.max_wait_seconds)
    return max(earliest, resident.loaded_at + max(least, LEAST_RESIDENCY))


def loss(resident: Resident, now: float) -> float:
    """Seconds its users are expected to wait for it within the horizon once it is gone.

    The time it takes to load, times the chance that it is asked for: one that has been idle for as
    long as the horizon is taken to be as likely to come back in that time as not.
    """
    if resident.last_used is None:
        return 0.0
    idle = max(now - resident.last_used, 0.0)
    chance = HORIZON_SECONDS / (HORIZON_SECONDS + idle)
    return resident.reload_seconds * chance * (SPARE if resident.spare else 1.0)


def worth(resident: Resident, now: float, rules: EvictionSettings) -> tuple[float, ...]:
    """What is lost with it; the least goes first.

    Busy ones last, then by rank where ranks count, then by `loss`: among models that take equally
    long to load, the least recently used first.
    """
    rank = float(resident.rank) if rules.strategy == "priority" else 0.0
    used = -1.0 if resident.last_used is None else resident.last_used - now
    return (float(resident.requests), rank, loss(resident, now), used)


def victims(
    candidates: Iterable[Resident], shortage_mb: int, now: float, rules: EvictionSettings
) -> tuple[Resident, ...] | None:
    """Those of *candidates* that leave so that *shortage_mb* come free; None when all do not free
    enough.

    None of them could be spared, and the one that is worth most is worth as little as possible. A
    size that is not known may be any: such models go last, and one of them is taken to be enough.
    """
    known = [each for each in candidates if each.mb is not None]
    unknown = [each for each in candidates if each.mb is None]
    chosen: list[Resident] = []
    freed = 0
    for each in sorted(known, key=lambda each: (*worth(each, now, rules), each.model)):
        if freed >= shortage_mb:
            break
        chosen.append(each)
        freed += each.mb or 0
    if freed < shortage_mb:
        if not unknown:
            return None
        least = min(unknown, key=lambda each: (*worth(each, now, rules), each.model))
        return (least,)
    for each in reversed(chosen[:-1]):
        if freed - (each.mb or 0) >= shortage_mb:
            chosen.remove(each)
            freed -= each.mb or 0
    return tuple(chosen)


def _grace(resident: Resident, rules: EvictionSettings) -> float:
    """Seconds it is kept idle: as long as a swap takes, within the bounded wait."""
    return min(THERE_AND_BACK * resident.reload_seconds, rules.max_wait_seconds)
