"""The neuron, put together. Everything long-lived is started here, by name, in reading order."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

import attrs
import trio
from prometheus_client import CollectorRegistry

from cortex import __version__
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.engine.engine import EngineStats
from cortex.engine.load.checkpoint import CPU_BATCH, CUDA_BATCH
from cortex.engine.models.registry import ARCHITECTURES
from cortex.errors import DeviceLost
from cortex.neuron import devices, resident_file
from cortex.neuron.activation import Activation
from cortex.neuron.admission import Admission
from cortex.neuron.api import NeuronApi, guard_of, render_error
from cortex.neuron.checkpoints import TorchCheckpoints, free_torch_memory, torch_threads
from cortex.neuron.device_metrics import DeviceCollector
from cortex.neuron.device_slot import DeviceSlot, thread_name
from cortex.neuron.device_thread import GRACE_SECONDS, DeviceThread
from cortex.neuron.health import HealthMonitor
from cortex.neuron.hub import cache_directory
from cortex.neuron.inference import Inference, unserved
from cortex.neuron.jobs import Call
from cortex.neuron.ledger import Ledger
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.metrics import NeuronMetrics, PullMetrics, SnapshotCollector
from cortex.neuron.pull_api import PullApi
from cortex.neuron.pulls import Pulls
from cortex.neuron.read_text import read_text
from cortex.neuron.readiness import Readiness
from cortex.neuron.restart import Restarter, inherited_listener
from cortex.neuron.sources import Sources
from cortex.service import logs, metrics
from cortex.service.disk import DiskMonitor
from cortex.service.edge import Edge
from cortex.service.http import Pace
from cortex.service.notify import Systemd
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve, url_of
from cortex.wire import neuron as wire

log = logs.get("neuron")

# One write per step and stream: on hypercorn they cost the thread that the engine waits for more
# than all else it does.
FAST_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
PACE = Pace(commit_after=float("inf"), keep_alive=2.0, stall=60.0)
MIB = 1 << 20
UNLOAD_SECONDS = 20.0  # to free the devices, behind the drain


async def run(
    config: NeuronConfig,
    *,
    stop: Callable[[], Awaitable[None]],
    systemd: Systemd | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until *stop* returns and the requests in flight are done. A crash in here is a crash
    of the process. Reports the base URL; *systemd* hears more. OSError when the address cannot be
    had."""
    systemd = Systemd() if systemd is None else systemd
    devices.pin_device_order(os.environ)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(inherited_listener(os.environ) or listen(config.listen))
        # The server closes its socket; a successor of this process needs one that is still open.
        spare = stack.enter_context(listener.dup())
        probe, inventory = await trio.to_thread.run_sync(devices.find, devices.system_probes())
        slots = [_slot(device, config) for device in inventory.devices]
        monitor = HealthMonitor(probe, inventory.devices)
        sources = Sources.from_config(config)
        lifecycle = Lifecycle(
            slots,
            sources,
            TorchCheckpoints(config.max_batch, config.max_batch_tokens, config.queue_wait_seconds),
            read_text,
            monitor.free_bytes,
            config.drain_seconds,
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
        served = trio.Event()
        pulls = Pulls(sources)
        async with trio.open_nursery() as nursery:
            api = _api(
                config,
                lifecycle,
                slots,
                monitor,
                activation,
                inventory,
                restarter,
                listener,
                legacy.recoveries,
                nursery,
                disk,
            )
            pulls.on_ended = PullMetrics(api.registry, lambda: pulls.under_way).ended
            for slot in slots:
                await nursery.start(slot.thread.run, name=slot.thread.name)
            await nursery.start(monitor.run, name="health monitor")
            await nursery.start(lifecycle.run, name="lifecycle")
            await nursery.start(pulls.run, name="pulls")
            nursery.start_soon(restarter.run, name="restarter")
            nursery.start_soon(disk.run, name="disk monitor")
            lifecycle.expect(legacy.requests)
            nursery.start_soon(
                systemd.run,
                lambda: _status(lifecycle.models()),
                lambda: _stuck(slots),
                name="systemd",
            )
            nursery.start_soon(_activate, activation, lifecycle, config, name="activation")

            async def stopping() -> None:
                await stop()
                systemd.stopping(config.drain_seconds + UNLOAD_SECONDS + GRACE_SECONDS)

            url = await nursery.start(_serve, api, pulls, config, listener, stopping, served)
            nursery.start_soon(_say_ready, systemd, slots, name="readiness")
            task_status.started(url)
            await served.wait()
            await _unload_all(lifecycle, config.drain_seconds)
            nursery.cancel_scope.cancel("the server has drained")


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


def _api(
    config: NeuronConfig,
    lifecycle: Lifecycle,
    slots: list[DeviceSlot],
    monitor: HealthMonitor,
    activation: Activation,
    inventory: devices.Inventory,
    restarter: Restarter,
    listener: socket.socket,
    recoveries: int,
    nursery: trio.Nursery,
    disk: DiskMonitor,
) -> NeuronApi:
    registry = CollectorRegistry()
    metrics.add_build_info(registry, "neuron_build_info", __version__)
    metrics.add_process(registry)
    registry.register(disk)
    metrics.add_log_count(registry, "neuron_log_lines_dropped")
    on_cuda = any(device.kind == "cuda" for device in inventory.devices)
    batch = config.max_batch or (CUDA_BATCH if on_cuda else CPU_BATCH)
    admission = Admission(batch, config.max_queue_depth)

    def stats() -> Iterable[tuple[str, EngineStats | None]]:
        return lifecycle.engine_stats()

    registry.register(
        SnapshotCollector(
            models=lifecycle.models,
            stats=stats,
            devices=lambda: monitor.devices,
            rejected=lambda model: admission.seats(model).rejected,
            revivals=lifecycle.revivals,
        )
    )
    registry.register(DeviceCollector(slots, lifecycle.estimate_errors, recoveries))
    told = NeuronMetrics(registry)
    lifecycle.on_landed = told.landed
    return NeuronApi(
        lifecycle,
        Inference(lifecycle, admission, told, PACE),
        admission,
        monitor,
        activation,
        Readiness(
            lifecycle, lambda: restarter.faulted, config.readiness_seconds, registry, nursery
        ),
        devices.discovery(
            inventory, version=__version__, architectures=tuple(sorted(ARCHITECTURES))
        ),
        registry,
        url_of(listener),
        lambda: restarter.faulted,
        restarter.renew,
    )


async def _serve(
    api: NeuronApi,
    pulls: Pulls,
    config: NeuronConfig,
    listener: socket.socket,
    stop: Callable[[], Awaitable[None]],
    served: trio.Event,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    """Serve until *stop*; from then on nothing new is admitted and what runs may end. Then sets
    *served*."""
    edge = Edge(
        [*api.routes(), *PullApi(pulls).routes()],
        render_error=render_error,
        guard=guard_of(config.token),
        ended=unserved,
    )

    async def stopping() -> None:
        await stop()
        log.info("draining", seconds=config.drain_seconds)
        api.lifecycle.drain()
        api.admission.close()
        pulls.close()

    async with trio.open_nursery() as nursery:

        async def start(*, task_status: trio.TaskStatus[str]) -> None:
            await serve(
                app_over(edge, "cortex-neuron"),
                listener,
                stop=stopping,
                drain_seconds=config.drain_seconds,
                fast=FastRoutes(edge, FAST_PATHS),
                task_status=task_status,
            )

        url: str = await nursery.start(start)
        log.info("listening", url=url)
        task_status.started(url)
    served.set()


async def _say_ready(systemd: Systemd, slots: Iterable[DeviceSlot]) -> None:
    """Once every device's thread answers, this neuron can serve."""
    try:
        for slot in slots:
            await slot.thread.ask(Call(lambda: None))
    except DeviceLost as exc:  # this process is being replaced, or ends
        log.warning("a device does not answer", cause=logs.cause_chain(exc))
    else:
        systemd.ready()


def _status(models: Iterable[wire.Model]) -> str:
    """One line on what can be had of this neuron."""
    found = Counter(model.status for model in models)
    return ", ".join(f"{count} {status}" for status, count in sorted(found.items())) or "no models"


def _stuck(slots: Iterable[DeviceSlot]) -> str | None:
    """Which device does not get on, and in what; None while all do."""
    for slot in slots:
        if (stuck := slot.thread.stuck) is not None:
            return f"{slot.thread.name} is stuck {stuck}"
    return None


async def _activate(activation: Activation, lifecycle: Lifecycle, config: NeuronConfig) -> None:
    """Load what is wanted at start; after that the record of a restart has served."""
    await activation.run()
    try:
        resident_file.settle(config.state_directory)
    except OSError as exc:
        log.warning("restart record not removed", cause=logs.cause_chain(exc))


async def _unload_all(lifecycle: Lifecycle, seconds: float) -> None:
    """Free every device, within *seconds*."""
    with trio.move_on_after(min(seconds, UNLOAD_SECONDS)):
        await lifecycle.unload_all()
