"""What a neuron is made of, put together; `app` starts it."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import attrs
import trio
from prometheus_client import CollectorRegistry

from cortex import __version__
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.engine.engine import EngineStats
from cortex.engine.load.checkpoint import CPU_BATCH, CUDA_BATCH
from cortex.engine.models.registry import ARCHITECTURES
from cortex.neuron import devices, resident_file
from cortex.neuron.activation import Activation
from cortex.neuron.admission import Admission
from cortex.neuron.api import NeuronApi
from cortex.neuron.checkpoints import TorchCheckpoints, free_torch_memory, torch_threads
from cortex.neuron.device_metrics import DeviceCollector
from cortex.neuron.device_slot import DeviceSlot, thread_name
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.health import HealthMonitor
from cortex.neuron.hub import cache_directory
from cortex.neuron.inference import Inference
from cortex.neuron.ledger import Ledger
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.metrics import NeuronMetrics, PullMetrics, SnapshotCollector
from cortex.neuron.pulls import Pulls
from cortex.neuron.read_text import read_text
from cortex.neuron.readiness import Readiness
from cortex.neuron.restart import Restarter
from cortex.neuron.sources import Sources
from cortex.service import metrics
from cortex.service.disk import DiskMonitor
from cortex.service.http import Pace
from cortex.service.notify import Systemd
from cortex.service.serve import url_of
from cortex.wire import neuron as wire

PACE = Pace(commit_after=float("inf"), keep_alive=2.0, stall=60.0)
MIB = 1 << 20


@attrs.frozen(eq=False)
class Neuron:
    """The long-lived parts. ``legacy`` is what a predecessor of this process has left."""

    config: NeuronConfig
    inventory: devices.Inventory
    slots: list[DeviceSlot]
    monitor: HealthMonitor
    lifecycle: Lifecycle
    legacy: resident_file.Legacy
    restarter: Restarter
    activation: Activation
    disk: DiskMonitor
    pulls: Pulls

    def api(self, listener: socket.socket, nursery: trio.Nursery) -> NeuronApi:
        """The routes, served at *listener*; what a probe asks runs in *nursery*."""
        admission = self._admission()
        registry = self._registry(admission)
        told = NeuronMetrics(registry)
        self.lifecycle.on_landed = told.landed
        self.pulls.on_ended = PullMetrics(registry, lambda: self.pulls.under_way).ended
        restarter = self.restarter
        return NeuronApi(
            self.lifecycle,
            Inference(self.lifecycle, admission, told, PACE),
            admission,
            self.monitor,
            self.activation,
            Readiness(
                self.lifecycle,
                lambda: restarter.faulted,
                self.config.readiness_seconds,
                registry,
                nursery,
            ),
            devices.discovery(
                self.inventory, version=__version__, architectures=tuple(sorted(ARCHITECTURES))
            ),
            registry,
            url_of(listener),
            lambda: restarter.faulted,
            restarter.renew,
        )

    def _admission(self) -> Admission:
        on_cuda = any(device.kind == "cuda" for device in self.inventory.devices)
        batch = self.config.max_batch or (CUDA_BATCH if on_cuda else CPU_BATCH)
        return Admission(batch, self.config.max_queue_depth)

    def _registry(self, admission: Admission) -> CollectorRegistry:
        registry = CollectorRegistry()
        metrics.add_build_info(registry, "neuron_build_info", __version__)
        metrics.add_process(registry)
        registry.register(self.disk)
        metrics.add_log_count(registry, "neuron_log_lines_dropped")

        def stats() -> Iterable[tuple[str, EngineStats | None]]:
            return self.lifecycle.engine_stats()

        registry.register(
            SnapshotCollector(
                models=self.lifecycle.models,
                stats=stats,
                devices=lambda: self.monitor.devices,
                rejected=lambda model: admission.seats(model).rejected,
                revivals=self.lifecycle.revivals,
            )
        )
        errors, recoveries = self.lifecycle.estimate_errors, self.legacy.recoveries
        registry.register(DeviceCollector(self.slots, errors, recoveries))
        return registry


def compose(
    config: NeuronConfig,
    probe: devices.DeviceProbe,
    inventory: devices.Inventory,
    spare: socket.socket,
    systemd: Systemd,
) -> Neuron:
    """The neuron over the devices that *probe* has found. A successor of this process gets
    *spare*, the listening socket."""
    slots = [_slot(device, config) for device in inventory.devices]
    monitor = HealthMonitor(probe, inventory.devices)
    sources = Sources.from_config(config)
    checkpoints = TorchCheckpoints(
        config.max_batch, config.max_batch_tokens, config.queue_wait_seconds
    )
    lifecycle = Lifecycle(
        slots, sources, checkpoints, read_text, monitor.free_bytes, config.drain_seconds
    )
    legacy = resident_file.read(config.state_directory)
    restarter = Restarter(
        config.state_directory,
        lifecycle.requests,
        spare,
        draining=lambda: lifecycle.draining,
        systemd=systemd,
    )
    lifecycle.on_device_fault = restarter.fault
    monitor.on_lost = lifecycle.device_lost
    activation = Activation(lifecycle.load, _wanted(legacy.requests, config.default_models))
    places = {"state": config.state_directory, "models": cache_directory(config)}
    disk = DiskMonitor("neuron_disk_free_bytes", "neuron_disk_size_bytes", places)
    return Neuron(
        config,
        inventory,
        slots,
        monitor,
        lifecycle,
        legacy,
        restarter,
        activation,
        disk,
        Pulls(sources),
    )


def _slot(device: wire.Device, config: NeuronConfig) -> DeviceSlot:
    """*device* with its thread and its ledger: `memory_fraction` of its memory is given out."""
    total = int((device.vram_total_mb or 0) * MIB * config.memory_fraction)
    thread = DeviceThread(
        thread_name(device), torch_threads(config.threads), free_memory=free_torch_memory
    )
    return DeviceSlot(device, thread, Ledger(device.index, total))


def _wanted(
    again: Iterable[wire.LoadRequest], defaults: Iterable[DefaultModel]
) -> list[wire.LoadRequest]:
    """What to load at start: what a predecessor had, then the configured models."""
    requests = {request.model_id: request for request in again}
    for model in defaults:
        fields = attrs.asdict(model, recurse=False)
        requests.setdefault(model.model_id, wire.LoadRequest(**fields))
    return list(requests.values())
