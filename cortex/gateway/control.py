"""What the gateway asks of neurons besides inference: polls, loads, estimates.

One pooled client for all nodes. It never follows a redirect, reads no proxy settings from the
environment, and takes in a bounded answer. A neuron's own errors come back as the same classes of
`cortex.errors`; everything else that can go wrong is an `UpstreamError`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import attrs
import httpx

from cortex import errors
from cortex.config.gateway import OPENAI, NeuronNode
from cortex.errors import BadRequest, CortexError, NotFound, UpstreamError, clip
from cortex.gateway import foreign
from cortex.service import logs
from cortex.service.silence import BREAKS_IN_SILENCE
from cortex.wire import converter, json
from cortex.wire import errors as wire_errors
from cortex.wire import neuron as wire

CONNECT_SECONDS = 5.0
READ_SECONDS = 5.0  # between two reads of an answer that costs the neuron nothing
TOKENIZE_SECONDS = 30.0  # a long prompt, and a tokenizer that is not in memory yet
MAX_ANSWER = 8 * 1024 * 1024  # bytes; a list of a thousand models is some 500 kB
# Loads hold a connection for minutes; polls of a large fleet must not queue behind them.
LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30.0)

T = TypeVar("T")


# The neuron refuses the gateway, or has a bug: neither is the fault of the gateway's client.
_NOT_PASSED_ON = (
    errors.Unauthorized,
    errors.Forbidden,
    errors.MethodNotAllowed,
    errors.UnsupportedMediaType,
    errors.InternalError,
)


@attrs.define(eq=False)
class NeuronControl:
    """Typed calls to the management routes of the neurons that are configured when one is made."""

    _neuron: Callable[[str], NeuronNode]  # by name; KeyError for one that is not configured
    _client: httpx.AsyncClient

    async def discovery(self, node: str) -> wire.Discovery:
        return self._typed(node, await self._call(node, "GET", "/discovery"), wire.Discovery)

    async def version(self, node: str) -> wire.Version:
        return self._typed(node, await self._call(node, "GET", "/version"), wire.Version)

    async def health(self, node: str) -> wire.Health:
        return self._typed(node, await self._call(node, "GET", "/health"), wire.Health)

    async def models(self, node: str) -> tuple[wire.Model, ...]:
        answer = await self._call(node, "GET", "/models")
        if not isinstance(answer, list):
            raise UpstreamError(f"neuron {node} answered /models with something else than a list")
        return tuple(self._typed(node, item, wire.Model) for item in answer)

    async def endpoint(self, node: str, model_id: str) -> str:
        """The base URL the neuron advertises for *model_id*, as it says it."""
        answer = await self._call(node, "GET", f"/models/{quote(model_id, safe='/')}/endpoint")
        return self._typed(node, answer, wire.Endpoint).url

    async def load(self, node: str, request: wire.LoadRequest) -> wire.LoadAnswer:
        """Return once the model is loaded. May take as long as it takes: bound it."""
        body = _without_none(request)
        answer = await self._call(node, "POST", "/models/load", body, read_seconds=None)
        return self._typed(node, answer, wire.LoadAnswer)

    async def unload(self, node: str, model_id: str) -> None:
        """Return once the model's requests have drained and it is gone. Bound it."""
        body = {"model_id": model_id}
        await self._call(node, "POST", "/models/unload", body, read_seconds=None)

    async def restart(self, node: str) -> None:
        """Have an idle neuron replace its process; it loads its models again. `Conflict` while it
        is in use, `NotFound` from one that cannot."""
        await self._call(node, "POST", "/restart", {})

    async def estimate(self, node: str, request: wire.LoadRequest) -> wire.Estimate:
        """Reads headers on the neuron's side, downloading them when needed. Bound it."""
        body = _without_none(request)
        answer = await self._call(node, "POST", "/models/estimate", body, read_seconds=None)
        return self._typed(node, answer, wire.Estimate)

    async def pull(self, node: str, request: wire.PullRequest) -> wire.Pull:
        """Begin to fetch a model's files, or find that under way; returns at once."""
        answer = await self._call(node, "POST", "/models/pull?wait=false", _without_none(request))
        return self._typed(node, answer, wire.Pull)

    async def pulls(self, node: str) -> wire.Pulls:
        return self._typed(node, await self._call(node, "GET", "/models/pulls"), wire.Pulls)

    async def cancel_pull(self, node: str, model_id: str) -> None:
        """Stop the pulls of *model_id*; `ModelNotFound` when there are none."""
        await self._call(node, "POST", "/models/pull/cancel", {"model_id": model_id})

    async def tokenize(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._call(node, "POST", "/tokenize", body, read_seconds=TOKENIZE_SECONDS)
        if not isinstance(answer, dict):
            raise UpstreamError(f"neuron {node} answered /tokenize with something else than counts")
        return answer

    # Servers of another make

    async def foreign_models(self, node: str) -> tuple[wire.Model, ...]:
        """What a server of another make lists; what is configured where it has no list."""
        neuron = self._configured(node)
        try:
            listing = await self._call(node, "GET", foreign.MODELS_PATH)
        except CortexError as exc:
            if neuron.models is None or not _has_no_such_route(exc):
                raise
            return foreign.mapped_models(neuron)
        return foreign.models_of(neuron, listing)

    async def foreign_tokenize(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        """`tokenize` as vLLM has it. `NotFound` from a server that counts in no way known here."""
        try:
            answer = await self._call(
                node, "POST", foreign.TOKENIZE_PATH, body, read_seconds=TOKENIZE_SECONDS
            )
        except CortexError as exc:
            if _has_no_such_route(exc):
                raise NotFound(f"neuron {node} does not count tokens") from exc
            raise
        if not isinstance(answer, dict) or "count" not in answer:
            raise NotFound(f"neuron {node} does not count tokens of chats")
        return answer

    def _configured(self, node: str) -> NeuronNode:
        try:
            return self._neuron(node)
        except KeyError:
            raise UpstreamError(f"neuron {node} is not configured any more") from None

    def _typed(self, node: str, value: Any, cls: type[T]) -> T:
        try:
            return converter.structure(value, cls)
        except BadRequest as exc:
            kind = cls.__name__
            raise UpstreamError(f"neuron {node} sent a {kind} that is none: {exc}") from exc

    async def _call(
        self,
        node: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        read_seconds: float | None = READ_SECONDS,
    ) -> Any:
        neuron = self._configured(node)
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if neuron.kind == OPENAI:
            headers |= foreign.headers_for(neuron)
            base = foreign.base_url(neuron.endpoint)
        else:
            if neuron.token is not None:
                headers["authorization"] = f"Bearer {neuron.token}"
            base = neuron.endpoint.rstrip("/")
        request_id = logs.request_id.get()
        if request_id is not None:
            headers["x-request-id"] = request_id
        content = None
        if body is not None:
            content = json.dumps(body)
            headers["content-type"] = "application/json"
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, read=read_seconds)
        try:
            async with self._client.stream(
                method, base + path, headers=headers, content=content, timeout=timeout
            ) as response:
                data = await _read(response, node)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            what = clip(_why(exc), 200)
            raise UpstreamError(f"neuron {node} cannot be reached: {what}") from exc
        if not response.is_success:
            raise error_from(node, response.status_code, data, response.headers.get("retry-after"))
        try:
            return json.loads(data)
        except BadRequest as exc:
            raise UpstreamError(
                f"neuron {node} answered {path} with something else than JSON"
            ) from exc


async def _read(response: httpx.Response, node: str) -> bytes:
    data = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            data += chunk
            if len(data) > MAX_ANSWER:
                raise UpstreamError(f"neuron {node} sent an answer larger than {MAX_ANSWER} bytes")
    return bytes(data)


def error_from(node: str, status: int, body: bytes, retry_after: str | None) -> CortexError:
    """The error a neuron's answer with a *status* outside 2xx stands for."""
    told = wire_errors.parse(status, body, retry_after)
    message = f"neuron {node}: {clip(told.message, 800)}"
    if isinstance(told, _NOT_PASSED_ON) or not 400 <= status < 600:
        return UpstreamError(message, extras={"upstream_status": status})
    return type(told)(
        message, param=told.param, retry_after=told.retry_after, extras=dict(told.extras)
    )


def _why(error: BaseException) -> str:
    """The first words along the chain of causes: some of httpx's errors have none themselves."""
    link: BaseException | None = error
    while link is not None and not str(link):
        link = link.__cause__ or link.__context__
    return str(link) if link is not None else type(error).__name__


def _has_no_such_route(error: CortexError) -> bool:
    return isinstance(error, NotFound) or error.extras.get("upstream_status") in (405, 501)


def _without_none(request: wire.LoadRequest | wire.PullRequest) -> dict[str, Any]:
    plain: dict[str, Any] = converter.unstructure(request)
    return {key: value for key, value in plain.items() if value is not None}


class _TlsWhenNeeded(httpx.AsyncBaseTransport):
    """Reads the system's certificates (20 ms, 5 MB) with the first call that needs them."""

    def __init__(self) -> None:
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._transport is None:
            self._transport = httpx.AsyncHTTPTransport(
                verify=ssl.create_default_context(),
                limits=LIMITS,
                trust_env=False,
                socket_options=BREAKS_IN_SILENCE,
            )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()


@asynccontextmanager
async def open_control(neuron: Callable[[str], NeuronNode]) -> AsyncIterator[NeuronControl]:
    """A `NeuronControl` whose connections are closed with the block.

    *neuron* says how a node is configured at the time of each call; KeyError when it is not.
    """
    plain = httpx.AsyncHTTPTransport(
        limits=LIMITS,
        trust_env=False,
        verify=False,  # of plain connections; those of the mount are verified
        # A load waits for minutes on a connection that nobody writes to.
        socket_options=BREAKS_IN_SILENCE,
    )
    async with httpx.AsyncClient(
        transport=plain,
        follow_redirects=False,
        trust_env=False,
        mounts={"https://": _TlsWhenNeeded()},
    ) as client:
        yield NeuronControl(neuron, client)
