"""What loading a model takes, in memory and in time: measured where it was done before.

The size the catalogue states comes first, then what a neuron has estimated from the files. What a
loaded model takes says little of what it needs, since its cache fills a part of what was free. Time
follows from the last load on the same node, else from the size and from how fast that node, or the
fleet, has been loading.
"""

from __future__ import annotations

import attrs

from cortex.config.catalogue import CatalogueEntry
from cortex.wire import neuron as wire

MIB = 1 << 20
USEFUL_CONTEXT = 8192  # tokens; with less room than for these it is better to make some
ROOMY = 0.9  # of a device: what neurons give out unless told otherwise
FIRST_BANDWIDTH = 1000.0  # MiB/s before anything was measured: weights off a common SSD
UNKNOWN_SECONDS = 15.0  # for a model of which no size is known
# A node that has not loaded a model yet may have to download it first.
STRANGE = 3.0
TELLING_MB = 256  # smaller loads say little of a node's bandwidth
SMOOTHING = 0.3  # the part the newest load has in a node's bandwidth


@attrs.define(eq=False)
class ModelCosts:
    """Owner of the sizes and loading times that were learnt; kept for the process's life."""

    _estimated: dict[str, int] = attrs.field(factory=dict, init=False)  # MiB
    _fixed: dict[str, int] = attrs.field(factory=dict, init=False)  # estimates without cache
    _least: dict[str, int] = attrs.field(factory=dict, init=False)  # more than was free
    _seconds: dict[tuple[str, str], float] = attrs.field(factory=dict, init=False)
    _bandwidth: dict[str, float] = attrs.field(factory=dict, init=False)  # MiB/s, by node

    def mb(self, model_id: str, entry: CatalogueEntry | None) -> int | None:
        """MiB the model takes, None when nobody knows."""
        if entry is not None and entry.vram_mb is not None:
            return entry.vram_mb
        known, least = self._estimated.get(model_id), self._least.get(model_id)
        if known is None or least is None:
            return least if known is None else known
        return max(known, least)

    def fitting_mb(
        self, model_id: str, entry: CatalogueEntry | None, largest_mb: int | None
    ) -> int | None:
        """As `mb`, but what nobody has stated is at most what the largest device has to give: with
        less room a neuron makes do with a shorter context, down to none at all."""
        mb = self.mb(model_id, entry)
        stated = entry is not None and entry.vram_mb is not None
        if mb is None or stated or largest_mb is None:
            return mb
        return min(mb, max(int(largest_mb * ROOMY), self._fixed.get(model_id, 0)))

    def resident_mb(self, model: wire.Model, entry: CatalogueEntry | None) -> int | None:
        """MiB that come free when *model* leaves."""
        measured = model.vram_used_mb
        return measured if measured is not None else self.mb(model.id, entry)

    def seconds(self, node: str, model_id: str, mb: int | None) -> float:
        """How long loading the model on *node* is expected to take."""
        if (node, model_id) in self._seconds:
            return self._seconds[node, model_id]
        return self.reload_seconds(node, model_id, mb) * STRANGE

    def reload_seconds(self, node: str, model_id: str, mb: int | None) -> float:
        """The same for a model that is on *node* already."""
        last = self._seconds.get((node, model_id))
        if last is not None:
            return last
        return UNKNOWN_SECONDS if mb is None else mb / self._speed(node)

    def estimated(self, model_id: str, estimate: wire.Estimate) -> None:
        """Take in what a neuron has read off the model's files.

        Of its cache only as much counts as a context of `USEFUL_CONTEXT` takes: the rest depends on
        what was free when the neuron was asked.
        """
        tokens = min(estimate.trained_context, USEFUL_CONTEXT)
        fixed = estimate.total_bytes - estimate.rows.get("kv", 0)
        needed = fixed + estimate.kv_bytes_per_token * tokens
        self._fixed[model_id] = -(-fixed // MIB)
        self._estimated[model_id] = -(-needed // MIB)

    def loaded(self, node: str, model: wire.Model, mb: int | None, seconds: float) -> None:
        """A load of *model* on *node* has taken *seconds*."""
        self._seconds[node, model.id] = seconds
        self._least.pop(model.id, None)
        size = mb if mb is not None else model.vram_used_mb
        if size is None or size < TELLING_MB or seconds <= 0:
            return
        before = self._bandwidth.get(node)
        speed = size / seconds
        if before is not None:
            speed = SMOOTHING * speed + (1 - SMOOTHING) * before
        self._bandwidth[node] = speed

    def refused(self, model_id: str, free_mb: int) -> None:
        """A neuron with *free_mb* had no room for the model: it needs more than that, unless the
        catalogue knows better."""
        self._least[model_id] = max(self._least.get(model_id, 0), free_mb + 1)

    def _speed(self, node: str) -> float:
        known = self._bandwidth.get(node)
        if known is None and self._bandwidth:
            known = sum(self._bandwidth.values()) / len(self._bandwidth)
        return known or FIRST_BANDWIDTH
