"""The gateway, put together. Everything long-lived is started here, by name, in reading order."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import attrs
import trio
from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from cortex import __version__
from cortex.config.catalogue import Catalogue
from cortex.config.gateway import GatewayConfig, GatewaySettings
from cortex.gateway import fleet_changes
from cortex.gateway.api.answers import openai_answer, renderer_for
from cortex.gateway.api.anthropic import AnthropicApi
from cortex.gateway.api.fleet import FleetApi
from cortex.gateway.api.openai import OpenAiApi
from cortex.gateway.api.responses import ResponsesApi
from cortex.gateway.auth.accounts import Accounts, open_accounts
from cortex.gateway.auth.announcement import announcing
from cortex.gateway.auth.scopes import scoped
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.control import open_control
from cortex.gateway.core import InferenceCore
from cortex.gateway.counting import TokenCounter
from cortex.gateway.events import EventLog
from cortex.gateway.exchange import UNKNOWN
from cortex.gateway.fleet import Fleet
from cortex.gateway.fleet_view import FleetView
from cortex.gateway.image_fetch import open_fetcher
from cortex.gateway.images import ImageGate
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.pins import Pins
from cortex.gateway.poller import Poller
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.reload import Reloader
from cortex.gateway.reload_plan import ReadFiles
from cortex.gateway.router import Router
from cortex.gateway.settings import LiveSettings
from cortex.gateway.upstream import PooledUpstream, Upstream
from cortex.service import logs, metrics
from cortex.service.edge import Edge
from cortex.service.http import Answer, Guard, HttpRequest, Pace, Route
from cortex.service.quart_app import app_over, make_app
from cortex.service.serve import FastRoutes, listen, serve

log = logs.get("gateway")

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


@attrs.frozen(eq=False)
class Gateway:
    """What serves requests, once its services run."""

    fleet: Fleet
    names: ModelNames
    router: Router
    pins: Pins
    events: EventLog
    reloader: Reloader
    core: InferenceCore
    counter: TokenCounter
    images: ImageGate
    registry: CollectorRegistry
    max_body_bytes: int
    strict_anthropic_version: bool
    accounts: Accounts
    guard: Guard

    def edge(self) -> Edge:
        """The API, for whichever server carries it."""
        routes = [
            *OpenAiApi(self.core, self.images).routes(),
            *AnthropicApi(
                self.core, self.counter, self.images, self.strict_anthropic_version
            ).routes(),
            *ResponsesApi(self.core, self.counter, self.images).routes(),
            *self._fleet_api().routes(),
        ]
        return Edge(
            [announcing(scoped(route), self.accounts.limiter) for route in routes],
            render_error=openai_answer,
            render_error_for=renderer_for,
            guard=self.guard,
            max_body_bytes=self.max_body_bytes,
        )

    def _fleet_api(self) -> FleetApi:
        view = FleetView(
            self.fleet,
            self.pins,
            self.router.is_pinned,
            self.router.expires_in,
            self.core.room.waiting,
            self.names.model_ids,
        )
        return FleetApi(
            self.names,
            self.fleet,
            self.router,
            view,
            self.pins,
            self.events,
            self.reloader,
            lambda: self.core.pace,
        )

    def metrics_app(self) -> QuartTrio:
        async def exposition(request: HttpRequest) -> Answer:
            return Answer(metrics.render(self.registry), content_type=metrics.CONTENT_TYPE)

        routes = [Route("GET", "/metrics", exposition)]
        return make_app("cortex-gateway-metrics", routes, render_error=openai_answer)


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
    task_status: trio.TaskStatus[GatewayAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until *stop* returns and the requests in flight are done. A crash in here is a crash
    of the process. Without *pins* those that are set last as long as it. Keys and usage are in
    *state_directory*; without one there are none. *read_again* gives the files as they are when
    they are to be reloaded, which happens whenever *hangup* returns. Without *fast_lane* every
    request is hypercorn's.

    OSError when an address cannot be had, `DatabaseError` when the keys cannot be read.
    """
    live = LiveSettings(config)
    settings = live.gateway
    pins = Pins() if pins is None else pins
    events = EventLog()

    async def stopping() -> None:
        await stop()
        events.close()  # what follows it would hold up the drain

    registry = CollectorRegistry()
    metrics.add_build_info(registry, "cortex_build_info", __version__)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.listen))
        metrics_listener = stack.enter_context(listen(settings.metrics_listen))
        accounts = stack.enter_context(
            open_accounts(state_directory, config.auth, config.usage, registry)
        )
        fleet = Fleet(config.neurons)
        control = await stack.enter_async_context(open_control(fleet.neuron))
        upstream = await stack.enter_async_context(PooledUpstream(settings.stall_seconds))
        names = ModelNames(catalogue, fleet)
        fetcher = await stack.enter_async_context(open_fetcher(config.images))
        recorder = GatewayMetrics(registry)
        recorder.observe_fleet(fleet.nodes)
        async with trio.open_nursery() as nursery:
            poller = Poller(fleet, control, settings.poll_seconds)
            router = Router(
                names,
                fleet,
                control,
                poller,
                recorder,
                settings,
                live.eviction,
                nursery,
                pins,
                events,
            )
            room = WaitingRoom(fleet, settings.queue_depth, settings.queue_wait_seconds)
            core = make_core(router, names, upstream, recorder, config, room, accounts)

            def retune(settings: GatewaySettings) -> None:
                core.pace = make_pace(settings)
                upstream.stall_seconds = settings.stall_seconds
                room.depth, room.patience = settings.queue_depth, settings.queue_wait_seconds
                poller.retune(settings.poll_seconds)
                accounts.retune(live.config.auth, live.config.usage)

            live.follow(retune)
            reloader = Reloader(read_again, live, names, fleet, router, registry, events, nursery)
            counter = TokenCounter(names, fleet, control)
            gateway = Gateway(
                fleet,
                names,
                router,
                pins,
                events,
                reloader,
                core,
                counter,
                ImageGate(names, fleet, fetcher),
                registry,
                settings.max_body_mb << 20,
                settings.strict_anthropic_version,
                accounts,
                accounts.guard(settings.listen, partial(recorder.error, UNKNOWN, UNKNOWN)),
            )
            nursery.start_soon(fleet_changes.watch, fleet, events, name="fleet events")
            await nursery.start(poller.run, name="poller")
            nursery.start_soon(router.unload_idle, name="idle unloader")
            nursery.start_soon(room.run, name="waiting room")
            nursery.start_soon(accounts.run, name="accounts")
            if hangup is not None:
                nursery.start_soon(reloader.on_each, hangup, name="reload on hangup")
            drained = trio.Event()
            async with trio.open_nursery() as servers:
                metrics_url = await servers.start(
                    _serve_metrics, gateway.metrics_app(), metrics_listener, drained
                )
                url = await servers.start(
                    _serve_api,
                    gateway.edge(),
                    fast_lane,
                    listener,
                    stopping,
                    settings.drain_seconds,
                    drained,
                )
                log.info("listening", url=url, metrics=f"{metrics_url}/metrics")
                task_status.started(GatewayAddresses(url, metrics_url))
            log.info("drained")
            nursery.cancel_scope.cancel("the servers have drained")


def make_core(
    router: Router,
    names: ModelNames,
    upstream: Upstream,
    recorder: GatewayMetrics,
    config: GatewayConfig,
    room: WaitingRoom,
    accounts: Accounts | None = None,
) -> InferenceCore:
    """The request core over *router* and *upstream*, paced as configured."""
    pace = make_pace(config.gateway)
    return InferenceCore(router, names, upstream, recorder, pace, room, accounts or Accounts())


def make_pace(settings: GatewaySettings) -> Pace:
    return Pace(
        commit_after=settings.commit_after_seconds,
        keep_alive=settings.keepalive_seconds,
        stall=settings.stall_seconds,
    )


async def _serve_api(
    edge: Edge,
    fast_lane: bool,
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
