"""The neuron, put together. Everything long-lived is started here, by name, in reading order."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

import trio

from cortex.config.neuron import NeuronConfig
from cortex.errors import DeviceLost
from cortex.neuron import devices, resident_file
from cortex.neuron.activation import Activation
from cortex.neuron.api import NeuronApi, guard_of, render_error
from cortex.neuron.composition import Neuron, compose
from cortex.neuron.device_slot import DeviceSlot
from cortex.neuron.device_thread import GRACE_SECONDS
from cortex.neuron.inference import unserved
from cortex.neuron.jobs import Call
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.pull_api import PullApi
from cortex.neuron.pulls import Pulls
from cortex.neuron.restart import inherited_listener
from cortex.service import logs
from cortex.service.edge import Edge
from cortex.service.notify import Systemd
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve
from cortex.wire import neuron as wire

log = logs.get("neuron")

# One write per step and stream: on hypercorn they cost the thread that the engine waits for more
# than all else it does.
FAST_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
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
        neuron = compose(config, probe, inventory, spare, systemd)
        served = trio.Event()
        async with trio.open_nursery() as nursery:
            api = neuron.api(listener, nursery)
            await _start(neuron, systemd, nursery)

            async def stopping() -> None:
                await stop()
                systemd.stopping(config.drain_seconds + UNLOAD_SECONDS + GRACE_SECONDS)

            url = await nursery.start(_serve, api, neuron.pulls, config, listener, stopping, served)
            nursery.start_soon(_say_ready, systemd, neuron.slots, name="readiness")
            task_status.started(url)
            await served.wait()
            await _unload_all(neuron.lifecycle, config.drain_seconds)
            nursery.cancel_scope.cancel("the server has drained")


async def _start(neuron: Neuron, systemd: Systemd, nursery: trio.Nursery) -> None:
    """Start everything but the server."""
    lifecycle = neuron.lifecycle
    for slot in neuron.slots:
        await nursery.start(slot.thread.run, name=slot.thread.name)
    await nursery.start(neuron.monitor.run, name="health monitor")
    await nursery.start(lifecycle.run, name="lifecycle")
    await nursery.start(neuron.pulls.run, name="pulls")
    nursery.start_soon(neuron.restarter.run, name="restarter")
    nursery.start_soon(neuron.disk.run, name="disk monitor")
    lifecycle.expect(neuron.legacy.requests)
    nursery.start_soon(
        systemd.run,
        lambda: _status(lifecycle.models()),
        lambda: _stuck(neuron.slots),
        name="systemd",
    )
    nursery.start_soon(_activate, neuron.activation, lifecycle, neuron.config, name="activation")


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
