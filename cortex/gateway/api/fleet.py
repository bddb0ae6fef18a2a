"""What the gateway says of itself and its fleet: models, health, lifecycle."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import attrs

from cortex import __version__
from cortex.errors import Forbidden, ModelNotFound, clip
from cortex.gateway import models_view
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.gateway.router import Router
from cortex.service.http import Answer, HttpRequest, Route
from cortex.wire import json, limits
from cortex.wire.converter import structure

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@attrs.frozen
class FleetModel:
    """The body of a load or unload: which model, and where if that matters."""

    model: str = attrs.field(validator=limits.non_empty)
    node: str | None = None


@attrs.frozen(eq=False)
class FleetApi:
    names: ModelNames
    fleet: Fleet
    router: Router

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/", self.health),
            Route("GET", "/health", self.health),
            Route("GET", "/livez", self.alive),
            Route("GET", "/readyz", self.ready),
            Route("GET", "/version", self.version),
            Route("GET", "/v1/models", self.models),
            Route("GET", "/v1/models/{id:path}", self.model),
            Route("GET", "/fleet", self.nodes),
            Route("POST", "/fleet/models/load", self.load),
            Route("POST", "/fleet/models/unload", self.unload),
        ]

    async def health(self, request: HttpRequest) -> Answer:
        """Always 200, with a truthful body."""
        return Answer(json.dumps(models_view.health(self.fleet)))

    async def alive(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps({"status": "alive"}))

    async def ready(self, request: HttpRequest) -> Answer:
        """200 while a request could be sent somewhere, else 503."""
        ready = any(node.healthy for node in self.fleet.nodes())
        return Answer(json.dumps({"ready": ready}), 200 if ready else 503)

    async def version(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps({"version": __version__}))

    async def models(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps(models_view.models(self.names, self.fleet)))

    async def model(self, request: HttpRequest) -> Answer:
        name = request.params["id"]
        entry = models_view.model(self.names, self.fleet, name)
        if entry is None:
            raise ModelNotFound(f"the model '{clip(name)}' does not exist", param="model")
        return Answer(json.dumps(entry))

    async def nodes(self, request: HttpRequest) -> Answer:
        _local_only(request)
        return Answer(json.dumps(models_view.fleet(self.fleet)))

    async def load(self, request: HttpRequest) -> Answer:
        _local_only(request)
        asked = structure(json.load_object(request.body), FleetModel)
        node = await self.router.load(asked.model, asked.node)
        return Answer(json.dumps({"status": "loaded", "node": node}))

    async def unload(self, request: HttpRequest) -> Answer:
        _local_only(request)
        asked = structure(json.load_object(request.body), FleetModel)
        nodes = await self.router.unload(asked.model, asked.node)
        return Answer(json.dumps({"status": "unloaded", "nodes": list(nodes)}))


def _local_only(request: HttpRequest) -> None:
    """Admin routes answer loopback peers, and no page that a browser was led to by a name of its
    own choosing (DNS rebinding): the Host must be a loopback name too."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        host = None
    if not _loopback(request.peer) or host not in LOOPBACK_HOSTS:
        raise Forbidden("fleet routes answer requests from this machine only")


def _loopback(peer: str | None) -> bool:
    try:
        return peer is not None and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
