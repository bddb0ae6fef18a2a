"""What the gateway says of itself and its fleet: models, health, lifecycle."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from cortex import __version__
from cortex.errors import BadRequest, ModelNotFound, clip
from cortex.gateway import models_view
from cortex.gateway.api.models import list_models, one_model
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.event_stream import EventStream
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet
from cortex.gateway.fleet_view import FleetView
from cortex.gateway.pins import Pins
from cortex.gateway.readiness import Readiness
from cortex.gateway.reload import Reloader
from cortex.gateway.router import Router
from cortex.service import logs, stamp
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer
from cortex.service.stream import Pace
from cortex.wire import json, limits
from cortex.wire.converter import structure

log = logs.get("gateway.fleet")


@attrs.frozen
class FleetModel:
    """The body of an order: which model, and where if that matters."""

    model: str = attrs.field(validator=limits.non_empty)
    node: str | None = None


@attrs.frozen
class FleetLoad(FleetModel):
    wait: bool = True  # else the answer comes at once


@attrs.frozen(eq=False)
class FleetApi:
    names: ModelNames
    fleet: Fleet
    router: Router
    view: FleetView
    pins: Pins
    events: EventLog
    reloader: Reloader
    readiness: Readiness
    pace: Callable[[], Pace]

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/", self.health),
            Route("GET", "/health", self.health),
            Route("GET", "/livez", self.alive),
            Route("GET", "/readyz", self.ready),
            Route("GET", "/version", self.version),
            Route("GET", "/v1/models", self.models),
            Route("GET", "/v1/models/", self.models),
            Route("GET", "/v1/models/{id:path}", self.model),
            Route("GET", "/fleet", self.nodes),
            Route("GET", "/fleet/events", self.follow),
            Route("POST", "/fleet/reload", self.reload),
            Route("POST", "/fleet/models/load", self.load),
            Route("POST", "/fleet/models/unload", self.unload),
            Route("POST", "/fleet/models/pin", self.pin),
            Route("POST", "/fleet/models/unpin", self.unpin),
        ]

    async def health(self, request: HttpRequest) -> Answer:
        """Always 200, with a truthful body."""
        return Answer(json.dumps(models_view.health(self.fleet)))

    async def alive(self, request: HttpRequest) -> Answer:
        """Whether the event loop turns, and nothing more."""
        return Answer(json.dumps({"status": "alive"}))

    async def ready(self, request: HttpRequest) -> Answer:
        """200 while requests are answered, as far as a token lately tells; else 503."""
        body = await self.readiness.body()
        return Answer(json.dumps(body), 200 if body["ready"] else 503)

    async def version(self, request: HttpRequest) -> Answer:
        build = stamp.running()
        said = {"version": __version__, "commit": build.commit, "flavour": build.flavour}
        return Answer(json.dumps(said))

    async def models(self, request: HttpRequest) -> Answer:
        return list_models(self.names, self.fleet, request)

    async def model(self, request: HttpRequest) -> Answer:
        return one_model(self.names, self.fleet, request)

    async def nodes(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps(self.view.body()))

    async def follow(self, request: HttpRequest) -> StreamAnswer:
        return EventStream(self.events, self.view.body).answer(request, self.pace())

    async def reload(self, request: HttpRequest) -> Answer:
        """Read the configuration again and put it in force; ``?dry_run=true`` only says what that
        would change."""
        word = request.query.get("dry_run", "false")
        if word not in ("true", "false"):
            raise BadRequest("must be true or false", param="dry_run")
        dry = word == "true"
        plan = await (self.reloader.plan() if dry else self.reloader.reload())
        status = "planned" if dry else "reloaded"
        return Answer(json.dumps({"status": status, "plan": plan.body()}))

    async def load(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), FleetLoad)
        if not asked.wait:
            self.router.start_load(asked.model, asked.node)
            return Answer(json.dumps({"status": "loading"}), 202)
        node = await self.router.load(asked.model, asked.node)
        return Answer(json.dumps({"status": "loaded", "node": node}))

    async def unload(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), FleetModel)
        nodes = await self.router.unload(asked.model, asked.node)
        return Answer(json.dumps({"status": "unloaded", "nodes": list(nodes)}))

    async def pin(self, request: HttpRequest) -> Answer:
        """Keep a model where it is, or on every node it will be on. It is not loaded by that."""
        asked = structure(json.load_object(request.body), FleetModel)
        model = self.names.resolve(asked.model).model
        nodes = [node.name for node in self.fleet.nodes()]
        if asked.node is not None and asked.node not in nodes:
            raise ModelNotFound(f"no neuron of that name; there are: {', '.join(nodes)}")
        self.pins.pin(model, asked.node)
        self.events.publish("pinned", model=model, node=asked.node)
        log.info("pinned", model=model, node=asked.node)
        return Answer(json.dumps({"status": "pinned", "model": model, "node": asked.node}))

    async def unpin(self, request: HttpRequest) -> Answer:
        """Take back pins, also of a model or on a node that is not there any more."""
        asked = structure(json.load_object(request.body), FleetModel)
        model = self.names.catalogue.aliases.get(asked.model, asked.model)
        taken = self.pins.unpin(model, asked.node)
        for pin in taken:
            self.events.publish("unpinned", model=pin.model, node=pin.node)
        log.info("unpinned", model=clip(model), pins=len(taken))
        nodes = [pin.node for pin in taken if pin.node is not None]
        return Answer(json.dumps({"status": "unpinned", "model": model, "nodes": nodes}))
