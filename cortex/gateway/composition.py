"""The gateway's parts, put together in the order in which they need each other.

`open_resources` opens what has to be closed again; `compose` builds on it what serves requests.
Neither starts a task of its own but the loads', which live in the nursery that is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from cortex import __version__
from cortex.config.catalogue import Catalogue
from cortex.config.gateway import GatewayConfig, GatewaySettings
from cortex.gateway.api.answers import openai_answer, renderer_for
from cortex.gateway.api.anthropic import AnthropicApi
from cortex.gateway.api.fleet import FleetApi
from cortex.gateway.api.openai import OpenAiApi
from cortex.gateway.api.pulls import PullApi
from cortex.gateway.api.responses import ResponsesApi
from cortex.gateway.auth.accounts import Accounts, open_accounts
from cortex.gateway.auth.announcement import announcing
from cortex.gateway.auth.scopes import scoped
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.certificate import context_of
from cortex.gateway.control import NeuronControl, open_control
from cortex.gateway.core import InferenceCore
from cortex.gateway.counting import TokenCounter
from cortex.gateway.dispatch import Dispatcher
from cortex.gateway.events import EventLog
from cortex.gateway.exchange import UNKNOWN, unserved
from cortex.gateway.fleet import Fleet
from cortex.gateway.fleet_view import FleetView
from cortex.gateway.image_fetch import ImageFetcher, open_fetcher
from cortex.gateway.images import ImageGate
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.pins import Pins
from cortex.gateway.poller import Poller
from cortex.gateway.pulls import FleetPulls
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.readiness import Readiness
from cortex.gateway.reload import Reloader
from cortex.gateway.reload_plan import ReadFiles
from cortex.gateway.router import Router
from cortex.gateway.settings import LiveSettings
from cortex.gateway.upstream import PooledUpstream, Upstream
from cortex.service import metrics
from cortex.service.cors import Cors
from cortex.service.disk import DiskMonitor
from cortex.service.edge import Edge
from cortex.service.http import Answer, HttpRequest, Pace, Route
from cortex.service.notify import Systemd
from cortex.service.quart_app import make_app
from cortex.service.reference import ReferenceRoute
from cortex.service.tls import Tls


@attrs.frozen(eq=False)
class Resources:
    """What is opened before anything is served, and closed after."""

    live: LiveSettings
    fleet: Fleet
    names: ModelNames
    accounts: Accounts
    control: NeuronControl
    upstream: PooledUpstream
    fetcher: ImageFetcher | None
    recorder: GatewayMetrics
    registry: CollectorRegistry
    events: EventLog
    pins: Pins
    tls: Tls | None
    disk: DiskMonitor


@asynccontextmanager
async def open_resources(
    config: GatewayConfig, catalogue: Catalogue, pins: Pins, state_directory: Path | None
) -> AsyncIterator[Resources]:
    """`DatabaseError` when the keys in *state_directory* cannot be read, `ConfigError` when the
    certificate cannot."""
    context = context_of(config)
    tls = Tls(context) if context is not None else None
    registry = CollectorRegistry()
    metrics.add_build_info(registry, "cortex_build_info", __version__)
    metrics.add_process(registry)
    metrics.add_log_count(registry, "cortex_log_lines_dropped")
    fleet = Fleet(config.neurons)
    recorder = GatewayMetrics(registry)
    recorder.observe_fleet(fleet.nodes)
    if tls is not None:
        recorder.observe_certificate(lambda: tls.context.expires_at)
    places = {} if state_directory is None else {"state": state_directory}
    disk = DiskMonitor("cortex_disk_free_bytes", "cortex_disk_size_bytes", places)
    registry.register(disk)
    async with AsyncExitStack() as stack:
        accounts = open_accounts(state_directory, config.auth, config.usage, registry)
        upstream = PooledUpstream(config.gateway.stall_seconds)
        yield Resources(
            LiveSettings(config),
            fleet,
            ModelNames(catalogue, fleet),
            stack.enter_context(accounts),
            await stack.enter_async_context(open_control(fleet.neuron)),
            await stack.enter_async_context(upstream),
            await stack.enter_async_context(open_fetcher(config.images)),
            recorder,
            registry,
            EventLog(),
            pins,
            tls,
            disk,
        )


@attrs.frozen(eq=False)
class Gateway:
    """What serves requests, and what has to run meanwhile."""

    resources: Resources
    poller: Poller
    router: Router
    room: WaitingRoom
    core: InferenceCore
    reloader: Reloader
    readiness: Readiness
    pulls: FleetPulls

    def edge(self) -> Edge:
        """The API, for whichever server carries it."""
        has, settings = self.resources, self.resources.live.gateway
        images = ImageGate(has.names, has.fleet, has.fetcher)
        counter = TokenCounter(has.names, has.fleet, has.control)
        strict = settings.strict_anthropic_version
        routes = [
            *OpenAiApi(self.core, counter, images).routes(),
            *AnthropicApi(self.core, counter, images, strict).routes(),
            *ResponsesApi(self.core, counter, images).routes(),
            *self._fleet_api().routes(),
            ReferenceRoute(_reference).route(),
            *PullApi(self.pulls).routes(),
        ]
        return Edge(
            [announcing(scoped(route), has.accounts.limiter) for route in routes],
            render_error=openai_answer,
            render_error_for=renderer_for,
            guard=has.accounts.guard(
                settings.listen, partial(has.recorder.error, UNKNOWN, UNKNOWN)
            ),
            max_body_bytes=settings.max_body_mb << 20,
            ended=unserved,
            cors=Cors(lambda: settings.cors_origins),
        )

    def _fleet_api(self) -> FleetApi:
        has = self.resources
        view = FleetView(
            has.fleet,
            has.pins,
            self.router.is_pinned,
            self.router.expires_in,
            self.room.waiting,
            has.names.model_ids,
        )
        return FleetApi(
            has.names,
            has.fleet,
            self.router,
            view,
            has.pins,
            has.events,
            self.reloader,
            self.readiness,
            lambda: self.core.pace,
        )

    def metrics_app(self) -> QuartTrio:
        async def exposition(request: HttpRequest) -> Answer:
            text = metrics.render(self.resources.registry)
            return Answer(text, content_type=metrics.CONTENT_TYPE)

        routes = [Route("GET", "/metrics", exposition)]
        return make_app("cortex-gateway-metrics", routes, render_error=openai_answer)

    def retune(self, settings: GatewaySettings) -> None:
        """Put changed *settings* in force where their owners keep a copy."""
        has = self.resources
        self.core.pace = make_pace(settings)
        has.upstream.stall_seconds = settings.stall_seconds
        self.room.depth, self.room.patience = settings.queue_depth, settings.queue_wait_seconds
        self.poller.retune(settings.poll_seconds)
        has.accounts.retune(has.live.config.auth, has.live.config.usage)


def compose(
    has: Resources,
    read_again: ReadFiles | None,
    nursery: trio.Nursery,
    systemd: Systemd | None = None,
) -> Gateway:
    """The gateway over what *has* been opened. Loads and reloads run in *nursery*."""
    settings = has.live.gateway
    poller = Poller(has.fleet, has.control, settings.poll_seconds)
    router = Router(
        has.names,
        has.fleet,
        has.control,
        poller,
        has.recorder,
        settings,
        has.live.eviction,
        nursery,
        has.pins,
        has.events,
    )
    room = WaitingRoom(has.fleet, settings.queue_depth, settings.queue_wait_seconds)
    has.recorder.observe_queue(room.all_waiting)
    core = make_core(
        router, has.names, has.upstream, has.recorder, has.live.config, room, has.accounts
    )
    reloader = Reloader(
        read_again,
        has.live,
        has.names,
        has.fleet,
        router,
        has.registry,
        has.events,
        nursery,
        has.tls,
        systemd,
    )
    readiness = Readiness(
        has.names,
        has.fleet,
        router,
        has.upstream,
        has.recorder,
        lambda: has.live.gateway.readiness_seconds,
        nursery,
    )
    pulls = FleetPulls(has.names, has.fleet, has.control, has.recorder, has.events, nursery)
    gateway = Gateway(has, poller, router, room, core, reloader, readiness, pulls)
    has.live.follow(gateway.retune)
    return gateway


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
    dispatcher = Dispatcher(router, upstream, recorder, room)
    return InferenceCore(dispatcher, names, recorder, pace, accounts or Accounts())


def _reference() -> bytes:
    from cortex.gateway.api.reference import encoded  # few ask, and a start must be quick

    return encoded()


def make_pace(settings: GatewaySettings) -> Pace:
    return Pace(
        commit_after=settings.commit_after_seconds,
        keep_alive=settings.keepalive_seconds,
        stall=settings.stall_seconds,
    )
