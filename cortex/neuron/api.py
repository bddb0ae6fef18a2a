"""The neuron's routes: management, inference, metrics. Errors wear OpenAI's envelope everywhere."""

from __future__ import annotations

import hmac
import platform
import time
from collections.abc import Callable
from importlib import metadata

import attrs
from prometheus_client import CollectorRegistry

from cortex import __version__
from cortex.errors import CortexError, Forbidden, ModelNotFound, Unauthorized, clip
from cortex.neuron.activation import Activation
from cortex.neuron.admission import Admission
from cortex.neuron.health import HealthMonitor
from cortex.neuron.inference import Inference
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.prompt import chat_prompt, plain_prompt
from cortex.neuron.readiness import Readiness
from cortex.service import metrics, stamp
from cortex.service.http import Answer, Guard, HttpRequest, Route
from cortex.service.origin import is_foreign_page
from cortex.service.reference import ReferenceRoute
from cortex.wire import errors, json
from cortex.wire import neuron as wire
from cortex.wire.converter import structure
from cortex.wire.openai import TokenizeRequest

PUBLIC = "public"  # the scope of what is told to who has no token


def render_error(error: CortexError, request_id: str) -> Answer:
    """A neuron's error: OpenAI's envelope, and 503 where a gateway would say 429."""
    status, headers, body = errors.render(error, alone=True)
    return Answer(json.dumps(body), status, headers)


def guard_of(token: str | None) -> Guard:
    """Refuses requests without *token* as their bearer, but for what is public; without one, web
    pages from elsewhere."""
    if token is None:
        return _refuse_pages
    expected = token.encode()

    def guard(request: HttpRequest, route: Route) -> None:
        if route.scope == PUBLIC:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected)
        if scheme.lower() != "bearer" or not known:
            raise Unauthorized("this neuron needs its token as a bearer")

    return guard


def _refuse_pages(request: HttpRequest, route: Route) -> None:
    if is_foreign_page(request.headers):
        raise Forbidden("web pages from elsewhere are not served by a neuron without a token")


@attrs.frozen(eq=False)
class NeuronApi:
    lifecycle: Lifecycle
    inference: Inference
    admission: Admission
    health_monitor: HealthMonitor
    activation: Activation
    readiness: Readiness
    discovery: wire.Discovery
    registry: CollectorRegistry
    url: str
    recovering: Callable[[], bool]
    renew: Callable[[], None]
    started_at: float = attrs.field(factory=time.monotonic)

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/discovery", self.discover),
            Route("GET", "/health", self.health),
            Route("GET", "/livez", self.alive, scope=PUBLIC),
            Route("GET", "/readyz", self.ready, scope=PUBLIC),
            Route("GET", "/version", self.version),
            Route("GET", "/metrics", self.exposition),
            Route("GET", "/models", self.models),
            Route("POST", "/restart", self.restart),
            Route("POST", "/models/load", self.load),
            Route("POST", "/models/unload", self.unload),
            Route("POST", "/models/estimate", self.estimate),
            Route("GET", "/models/{id:path}/endpoint", self.endpoint),
            Route("GET", "/models/{id:path}/capabilities", self.capabilities),
            Route("POST", "/tokenize", self.tokenize),
            Route("POST", "/v1/chat/completions", self.inference.chat),
            Route("POST", "/v1/completions", self.inference.completions),
            Route("POST", "/v1/embeddings", self.inference.embeddings),
            ReferenceRoute(_reference).route(),
        ]

    async def discover(self, request: HttpRequest) -> Answer:
        return _told(self.discovery)

    async def health(self, request: HttpRequest) -> Answer:
        """Always 200, with a truthful body."""
        status = "ok"
        if self.recovering() or self.lifecycle.recovering:
            status = "recovering"
        elif self.lifecycle.draining:
            status = "draining"
        return _told(
            wire.Health(
                uptime_secs=round(time.monotonic() - self.started_at, 3),
                status=status,
                devices=self.health_monitor.devices,
                activation=self.activation.state(),
                models=tuple(self._load(load) for load in self.lifecycle.loads()),
            )
        )

    async def alive(self, request: HttpRequest) -> Answer:
        """Whether the event loop turns, and nothing more."""
        return Answer(json.dumps({"status": "alive"}))

    async def ready(self, request: HttpRequest) -> Answer:
        """200 while every loaded model answers, as far as a token lately tells; else 503."""
        body = await self.readiness.body()
        return Answer(json.dumps(body), 200 if body["ready"] else 503)

    def _load(self, load: wire.ModelLoad) -> wire.ModelLoad:
        return attrs.evolve(
            load,
            max_in_flight=self.admission.max_running,
            max_queue_depth=self.admission.max_waiting,
            rejected_queue_full=self.admission.seats(load.id).rejected,
        )

    async def version(self, request: HttpRequest) -> Answer:
        try:
            torch = metadata.version("torch")
        except metadata.PackageNotFoundError:
            torch = None
        build = stamp.running()
        said = wire.Version(
            __version__,
            commit=build.commit,
            flavour=build.flavour,
            python=platform.python_version(),
            torch=torch,
        )
        return _told(said)

    async def exposition(self, request: HttpRequest) -> Answer:
        return Answer(metrics.render(self.registry), content_type=metrics.CONTENT_TYPE)

    async def models(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps([_plain(model) for model in self.lifecycle.models()]))

    async def restart(self, request: HttpRequest) -> Answer:
        """Replace this process by a new one, which loads the same models; 409 unless it is idle."""
        self.lifecycle.pause()
        self.renew()
        return _told(wire.RestartAnswer(), 202)

    async def load(self, request: HttpRequest) -> Answer:
        """Load and answer when it is done, or, with ``?wait=false``, at once."""
        asked = structure(json.load_object(request.body), wire.LoadRequest)
        if request.query.get("wait", "").lower() in ("false", "0", "no"):
            model = self.lifecycle.start_load(asked)
            status = 200 if model.status == wire.LOADED else 202
            return _told(wire.LoadAnswer(model.status, model), status)
        model = await self.lifecycle.load(asked)
        await self.health_monitor.look()  # who places by what is free must not see the past
        return _told(wire.LoadAnswer(wire.LOADED, model))

    async def unload(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), wire.UnloadRequest)
        await self.lifecycle.unload(asked.model_id)
        self.admission.forget(asked.model_id)
        await self.health_monitor.look()
        return _told(wire.UnloadAnswer())

    async def estimate(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), wire.LoadRequest)
        return _told(await self.lifecycle.estimate(asked))

    async def endpoint(self, request: HttpRequest) -> Answer:
        self._find(request.params["id"])
        return _told(wire.Endpoint(self.url))

    async def capabilities(self, request: HttpRequest) -> Answer:
        model = self._find(request.params["id"])
        if model.capabilities is None:
            raise ModelNotFound("the capabilities of this model are not known")
        return _told(wire.Capabilities(model.capabilities))

    async def tokenize(self, request: HttpRequest) -> Answer:
        """Render and count. Needs the tokenizer's files only, and takes no seat.

        ``model`` names a model that is here, or is the id of one to look up; a body with the other
        fields of a load (``source``, ...) says where its files are.
        """
        body = json.load_object(request.body)
        asked = structure(body, TokenizeRequest)
        spec: wire.LoadRequest | str = asked.model
        if body.get("source") is not None:
            spec = structure({**body, "model_id": asked.model}, wire.LoadRequest)
        text = await self.lifecycle.text_of(spec)
        if asked.prompt is not None:
            prompt = await plain_prompt(text, asked.prompt)
        else:
            prompt = await chat_prompt(text, asked)
        answer: dict[str, object] = {"count": len(prompt.ids)}
        if asked.return_tokens:
            answer["tokens"] = list(prompt.ids)
        return Answer(json.dumps(answer))

    def _find(self, model_id: str) -> wire.Model:
        for model in self.lifecycle.models():
            if model.id == model_id:
                return model
        raise ModelNotFound(f"the model '{clip(model_id)}' is not here", param="model")


def _reference() -> bytes:
    from cortex.neuron.reference import encoded  # few ask, and a start must be quick

    return encoded()


def _plain(value: attrs.AttrsInstance) -> dict[str, object]:
    """*value* for JSON, without what is not known."""
    return attrs.asdict(value, filter=lambda _, item: item is not None)


def _told(value: attrs.AttrsInstance, status: int = 200) -> Answer:
    return Answer(json.dumps(_plain(value)), status)
