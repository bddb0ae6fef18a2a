"""What a scrape tells of each device's memory, by ledger row, and of its faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.neuron.device_slot import DeviceSlot

Rows = dict[str, dict[str, int]]  # model -> row -> bytes


class DeviceCollector(Collector):
    """Reads *slots* when it is scraped. *errors* gives each loaded model's error of the estimate;
    *recoveries* are the faults that this process's predecessors ended with."""

    def __init__(
        self,
        slots: Sequence[DeviceSlot],
        errors: Callable[[], Iterable[tuple[str, float]]],
        recoveries: int,
    ) -> None:
        self._slots = slots
        self._errors = errors
        self._recoveries = recoveries

    def collect(self) -> Iterable[Metric]:
        yield self._memory(
            "neuron_device_memory_bytes",
            "Device memory taken, by ledger row: measured once loaded.",
            lambda slot: slot.ledger.rows(),
        )
        yield self._memory(
            "neuron_memory_estimated_bytes",
            "Device memory estimated before the load, by ledger row.",
            lambda slot: slot.ledger.estimates(),
        )
        errors = GaugeMetricFamily(
            "neuron_memory_estimate_error_ratio",
            "Estimate of the weights, less what was measured, as a part of that.",
            labels=["model"],
        )
        for model, error in self._errors():
            errors.add_metric([model], error)
        yield errors
        faults = CounterMetricFamily(
            "neuron_device_faults",
            "Faults that took a device from this process.",
            labels=["device"],
        )
        for slot in self._slots:
            faults.add_metric([str(slot.index)], 0 if slot.thread.fault is None else 1)
        yield faults
        recoveries = CounterMetricFamily(
            "neuron_recoveries", "Times that the process replaced itself after a device fault."
        )
        recoveries.add_metric([], self._recoveries)
        yield recoveries

    def _memory(self, name: str, text: str, rows: Callable[[DeviceSlot], Rows]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["device", "model", "row"])
        for slot in self._slots:
            for model, by_row in rows(slot).items():
                for row, size in by_row.items():
                    family.add_metric([str(slot.index), model, row], size)
        return family
