"""The gateway's life. Everything long-lived is started here, by name, in reading order."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import attrs
import trio
from quart_trio import QuartTrio

from cortex.config.catalogue import Catalogue
from cortex.config.gateway import GatewayConfig
from cortex.gateway import fleet_changes
from cortex.gateway.composition import compose, open_resources
from cortex.gateway.fleet import Fleet
from cortex.gateway.pins import Pins
from cortex.gateway.reload_plan import ReadFiles
from cortex.service import logs
from cortex.service.edge import Edge
from cortex.service.notify import Systemd
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve
from cortex.service.tls import Tls
from cortex.wire.neuron import LOADED

log = logs.get("gateway")

END_SECONDS = 30.0  # behind the drain: usage is written, connections are closed

FAST_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/responses/input_tokens",
        *(
            f"{prefix}/v1/messages{suffix}"
            for prefix in ("", "/anthropic")
            for suffix in ("", "/count_tokens")
        ),
    }
)


@attrs.frozen
class GatewayAddresses:
    """Base URLs of the two ports."""

    api: str
    metrics: str


async def run(
    config: GatewayConfig,
    catalogue: Catalogue,
    *,
    stop: Callable[[], Awaitable[None]],
    pins: Pins | None = None,
    state_directory: Path | None = None,
    read_again: ReadFiles | None = None,
    hangup: Callable[[], Awaitable[None]] | None = None,
    fast_lane: bool = True,
    systemd: Systemd | None = None,
    task_status: trio.TaskStatus[GatewayAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until *stop* returns and the requests in flight are done. A crash in here is a crash
    of the process. Without *pins* those that are set last as long as it. Keys and usage are in
    *state_directory*; without one there are none. *read_again* gives the files as they are when
    they are to be reloaded, which happens whenever *hangup* returns. Without *fast_lane* every
    request is hypercorn's. *systemd* hears how it stands.

    OSError when an address cannot be had, `DatabaseError` when the keys cannot be read,
    `ConfigError` when the certificate cannot.
    """
    settings = config.gateway
    pins = Pins() if pins is None else pins
    systemd = Systemd() if systemd is None else systemd
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.listen))
        metrics_listener = stack.enter_context(listen(settings.metrics_listen))
        has = await stack.enter_async_context(
            open_resources(config, catalogue, pins, state_directory)
        )

        async def stopping() -> None:
            await stop()
            systemd.stopping(settings.drain_seconds + END_SECONDS)
            has.events.close()  # what follows it would hold up the drain

        async with trio.open_nursery() as nursery:
            gateway = compose(has, read_again, nursery, systemd)
            nursery.start_soon(systemd.run, partial(_status, has.fleet), name="systemd")
            nursery.start_soon(fleet_changes.watch, has.fleet, has.events, name="fleet events")
            await nursery.start(gateway.poller.run, name="poller")
            nursery.start_soon(gateway.router.unload_idle, name="idle unloader")
            nursery.start_soon(gateway.room.run, name="waiting room")
            nursery.start_soon(has.accounts.run, name="accounts")
            nursery.start_soon(has.disk.run, name="disk monitor")
            if hangup is not None:
                nursery.start_soon(gateway.reloader.on_each, hangup, name="reload on hangup")
            drained = trio.Event()
            async with trio.open_nursery() as servers:
                metrics_url = await servers.start(
                    _serve_metrics, gateway.metrics_app(), metrics_listener, drained
                )
                url = await servers.start(
                    _serve_api,
                    gateway.edge(),
                    fast_lane,
                    has.tls,
                    listener,
                    stopping,
                    settings.drain_seconds,
                    drained,
                )
                log.info("listening", url=url, metrics=f"{metrics_url}/metrics")
                systemd.ready()
                task_status.started(GatewayAddresses(url, metrics_url))
            log.info("drained")
            nursery.cancel_scope.cancel("the servers have drained")


def _status(fleet: Fleet) -> str:
    """One line on what can be had through this gateway."""
    nodes = fleet.nodes()
    healthy = sum(node.serving for node in nodes)
    loaded = {m.id for node in nodes if node.serving for m in node.models if m.status == LOADED}
    return f"{healthy} of {len(nodes)} nodes serve, {len(loaded)} models are loaded"


async def _serve_api(
    edge: Edge,
    fast_lane: bool,
    tls: Tls | None,
    listener: socket.socket,
    stop: Callable[[], Awaitable[None]],
    drain_seconds: float,
    drained: trio.Event,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    try:
        await serve(
            app_over(edge, "cortex-gateway"),
            listener,
            stop=stop,
            drain_seconds=drain_seconds,
            fast=FastRoutes(edge, FAST_PATHS) if fast_lane else None,
            tls=tls,
            task_status=task_status,
        )
    finally:
        drained.set()


async def _serve_metrics(
    app: QuartTrio,
    listener: socket.socket,
    drained: trio.Event,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    """The metrics port stays up while the API drains, so that the drain can be watched."""
    await serve(
        app,
        listener,
        stop=drained.wait,
        drain_seconds=1,
        task_status=task_status,
    )
