"""The request core: an inference request from its body to its answer.

Knows neither which server carries the request nor how a model came to be loaded: it checks the
body, asks the router for a lease, sends the call, and hands streams to the relay. The dialects
differ in what they send upstream and in how they encode what comes back, nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import attrs
import trio

from cortex.errors import CortexError, ModelNotFound, Overloaded, UpstreamError, clip
from cortex.gateway import foreign
from cortex.gateway.affinity import affinity_key
from cortex.gateway.auth.accounts import Accounts, permit
from cortex.gateway.auth.caller import ANONYMOUS, BATCH, INTERACTIVE, Caller
from cortex.gateway.auth.usage import NO_KEY
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.encoder import Encoder
from cortex.gateway.exchange import Exchange
from cortex.gateway.foreign_answer import ForeignResponse, ForeignStream, pack_wanted
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.relay import relay
from cortex.gateway.router import Lease, Router
from cortex.gateway.upstream import Broken, Call, Refused, Upstream, UpstreamResponse
from cortex.service import logs
from cortex.service.http import HttpRequest, Pace, StreamAnswer
from cortex.wire import errors, json, sse
from cortex.wire.neuron import CALLER_HEADER, PRIORITY_HEADER, SALT_HEADER

MAX_ATTEMPTS = 3  # replicas tried before the first byte
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
NEURON_PRIORITY = {INTERACTIVE: "1", BATCH: "-1"}  # a neuron serves the higher one first
# Statuses of a neuron that say "not here, not now": another replica may serve the request.
ELSEWHERE = frozenset({404, 429, 502, 503})
TOKEN_REFUSED = frozenset({401, 403})
# Statuses from 500 on that do not say that the node has failed: it knows no such route, is busy.
NO_FAULTS = frozenset({501, 503, 529})

log = logs.get("gateway.core")


class Refusal(Exception):
    """A replica did not take the request; *error* says why, in case no other does."""

    def __init__(self, error: CortexError) -> None:
        super().__init__(error.message)
        self.error = error


@attrs.frozen(eq=False)
class Job:
    """What a dialect makes of a request: the upstream call without its model.

    ``affinity`` is the key of the session it belongs to, set by the core.
    """

    dialect: str
    requested: str
    path: str
    body: dict[str, Any]
    stream: bool
    affinity: str | None = None


@attrs.define(eq=False)
class InferenceCore:
    """Serves jobs. All collaborators belong to the application."""

    router: Router
    names: ModelNames
    upstream: Upstream
    metrics: GatewayMetrics
    pace: Pace
    room: WaitingRoom
    accounts: Accounts = attrs.field(factory=Accounts)

    async def unary(self, request: HttpRequest, job: Job) -> tuple[dict[str, Any], str]:
        """The neuron's whole answer to *job* and the resolved model's id."""
        with self._exchange(request, job) as exchange:
            model = self._permitted(request, exchange, job)
            async with self._open(request, exchange, job) as response:
                data = await response.read(MAX_ANSWER_BYTES)
            answer = _parse_answer(data)
            exchange.observed.take_usage(answer.get("usage"))
            exchange.observed.take_timings(answer.get("timings"))
            exchange.observed.take_finish(answer.get("choices"))
            return answer, model

    async def stream(
        self, request: HttpRequest, job: Job, encoder_for: Callable[[str], Encoder]
    ) -> StreamAnswer:
        """The neuron's streamed answer to *job*, encoded; *encoder_for* gets the model's id.

        The answer asks the neuron only when the server runs it, so what goes wrong there is not
        raised here; a handler that has its own words for errors gives it a ``render_error``.
        """
        exchange = self._exchange(request, job)
        try:
            model = self._permitted(request, exchange, job)
        except CortexError as exc:
            with exchange:
                exchange.failed(exc)
            raise
        encoder = encoder_for(model)
        return relay(
            exchange,
            lambda: self._open(request, exchange, job),
            encoder,
            self.pace,
            lambda: self._filler(exchange, encoder),
        )

    @contextmanager
    def reading(self, request: HttpRequest, dialect: str) -> Iterator[None]:
        """Around the reading of a body: one that is refused is logged and counted too."""
        try:
            yield
        except CortexError as exc:
            charge = self.accounts.charge(request.caller)
            with Exchange(
                self.metrics, dialect, "", request.received_at, charge=charge
            ) as exchange:
                exchange.failed(exc)
            raise

    def _exchange(self, request: HttpRequest, job: Job) -> Exchange:
        return Exchange(
            self.metrics,
            job.dialect,
            job.requested,
            request.received_at,
            stream=job.stream,
            charge=self.accounts.charge(request.caller),
        )

    def _filler(self, exchange: Exchange, encoder: Encoder) -> bytes:
        """A keep-alive; where it is a comment, and the model is still being loaded, how far that
        is."""
        usual = encoder.keep_alive()
        if usual != sse.KEEP_ALIVE or exchange.attempts:
            return usual
        loading = self.router.loading(exchange.model)
        return usual if loading is None else sse.comment(_words(loading))

    def permit(self, request: HttpRequest, requested: str) -> str:
        """The id of the model called *requested*, which the caller may use. `Forbidden` when it
        may not, whether there is such a model or not; `ModelNotFound` when there is none."""
        caller = request.caller
        try:
            model = self.names.resolve(requested).model
        except ModelNotFound:
            permit(caller, requested, requested)
            if caller is None or not caller.models:
                raise  # with the names that are near: which it may know
            raise ModelNotFound(
                f"the model '{clip(requested)}' does not exist", param="model"
            ) from None
        permit(caller, requested, model)
        return model

    def _permitted(self, request: HttpRequest, exchange: Exchange, job: Job) -> str:
        """The model's id, when the caller may use it."""
        began = time.perf_counter()
        model = self.permit(request, job.requested)
        exchange.resolved(model)
        request.guarded += time.perf_counter() - began
        return model

    def _charge(self, request: HttpRequest, exchange: Exchange, job: Job) -> None:
        """Hold the caller to its limits. What is held is given back when the exchange ends."""
        began = time.perf_counter()
        if exchange.charge is not None:
            exchange.charge.admit(job.body)
        exchange.authorised(request.guarded + time.perf_counter() - began)

    @asynccontextmanager
    async def _open(
        self, request: HttpRequest, exchange: Exchange, job: Job
    ) -> AsyncIterator[UpstreamResponse]:
        """The answer's head from the first replica that accepts *job*; its seat and its lease are
        held within. Nothing has reached the client yet, so a refusal may be tried elsewhere."""
        self._charge(request, exchange, job)
        deadline = trio.current_time() + self.room.patience
        exchange.queueing()
        caller: Caller = request.caller or ANONYMOUS
        async with self.room.seat(exchange.model, caller.key_id or NO_KEY, caller.priority):
            exchange.routing()
            job = attrs.evolve(job, affinity=affinity_key(request.headers, job.body))
            tried: set[str] = set()
            attempts = 0
            last: CortexError | None = None
            while attempts < MAX_ATTEMPTS:
                async with AsyncExitStack() as held:
                    try:
                        response, lease = await self._ask(request, exchange, job, tried, held)
                    except Refusal as refusal:
                        last = refusal.error
                    except UpstreamError as exc:
                        # No replica is left. What the last one said is what the client should
                        # hear, unless it was only full: then there may be room in a while.
                        full = isinstance(last, Overloaded)
                        if not full or trio.current_time() >= deadline:
                            raise last or exc from None
                        exchange.queueing()
                        await self.room.retry_later(exchange.model)
                        exchange.routing()
                        tried.clear()
                        continue
                    else:
                        with self._watched(lease):
                            yield response
                        return
                exchange.retried()
                attempts += not isinstance(last, Overloaded)
            raise last or UpstreamError("no replica took the request")

    async def _ask(
        self,
        request: HttpRequest,
        exchange: Exchange,
        job: Job,
        tried: set[str],
        held: AsyncExitStack,
    ) -> tuple[UpstreamResponse, Lease]:
        """Ask one replica not in *tried*. `Refusal` when another one may be asked; what the client
        did wrong is raised as it is."""
        lease = await held.enter_async_context(
            self.router.route(job.requested, exclude=frozenset(tried), affinity=job.affinity)
        )
        exchange.routed(lease)
        held.enter_context(self.metrics.in_flight(lease.model, lease.node))
        try:
            response = await held.enter_async_context(
                self.upstream.call(_call(request, job, lease))
            )
        except (Refused, Broken) as exc:
            if isinstance(exc, Refused):
                self.router.refused(lease)
            else:
                self.router.failed(lease, exc.message)
            tried.add(lease.node)
            raise Refusal(exc) from exc
        if response.status == 200:
            self.router.answered(lease)
            return _understood(response, job, lease), lease
        error = await _refusal(response, lease)
        fault = _is_fault(response.status)
        if fault or response.status in TOKEN_REFUSED:
            self.router.failed(lease, f"status {response.status}")
        elif response.status < 500 and response.status not in ELSEWHERE:
            self.router.answered(lease)
        if response.status in TOKEN_REFUSED:
            # It is the gateway's token that was refused: the client's key has nothing to do with it
            log.error("a neuron refuses the gateway's token", node=lease.node)
            tried.add(lease.node)
            error = UpstreamError(f"{lease.node} refused the gateway's token")
        elif isinstance(error, ModelNotFound):
            await self.router.look_again(lease)  # it thinks otherwise
        elif isinstance(error, Overloaded) or fault or response.status in ELSEWHERE:
            self.router.turned_away(lease, error.retry_after)
            tried.add(lease.node)
        else:
            raise error
        raise Refusal(error)

    @contextmanager
    def _watched(self, lease: Lease) -> Iterator[None]:
        """Around the reading of an answer: one that breaks off speaks against its node."""
        try:
            yield
        except UpstreamError as exc:
            self.router.failed(lease, exc.message)
            raise


async def _refusal(response: UpstreamResponse, lease: Lease) -> CortexError:
    """What a node's answer other than 200 means, in its own words if they arrive."""
    try:
        data = await response.read(MAX_ERROR_BYTES)
    except Broken:
        data = b""  # the status has said enough
    told = errors.parse(response.status, data, response.headers.get("retry-after"))
    return told if lease.foreign is None else foreign.refusal(lease.node, response.status, told)


def _is_fault(status: int) -> bool:
    """Whether the node itself has failed; its breaker counts that."""
    return status >= 500 and status not in NO_FAULTS


def _understood(response: UpstreamResponse, job: Job, lease: Lease) -> UpstreamResponse:
    if lease.foreign is None:
        return response
    return ForeignResponse(response, ForeignStream(lease.model), pack_wanted(job.body))


def _call(request: HttpRequest, job: Job, lease: Lease) -> Call:
    # What was checked is what is sent: the parsed body, not the client's bytes. The client's own
    # headers stay here, its key above all, and those in which a gateway names its caller.
    headers = {
        "accept": "text/event-stream" if job.stream else "application/json",
        "x-request-id": request.request_id,
    }
    trace = request.headers.get("traceparent")
    if trace is not None and trace.isascii() and trace.isprintable() and len(trace) <= 128:
        headers["traceparent"] = trace
    if lease.foreign is not None:
        there = lease.foreign
        headers |= foreign.headers_for(there.neuron)
        body = json.dumps(foreign.body_for(there.neuron, job.path, job.body, there.model))
        return Call(lease.endpoint, job.path, body, headers)
    headers |= _caller_headers(request.caller or ANONYMOUS)
    if lease.token:
        headers["authorization"] = f"Bearer {lease.token}"
    body = json.dumps({**job.body, "model": lease.model})
    return Call(lease.endpoint, job.path, body, headers)


def _caller_headers(caller: Caller) -> dict[str, str]:
    """What a neuron is told of the caller: for its fair share, and for whom it caches prefixes."""
    headers = {CALLER_HEADER: caller.name}
    if caller.salt:
        headers[SALT_HEADER] = caller.salt
    if caller.priority in NEURON_PRIORITY:
        headers[PRIORITY_HEADER] = NEURON_PRIORITY[caller.priority]
    return headers


def _words(loading: dict[str, Any]) -> str:
    """``loading node stage 42% eta 12s``, as far as known."""
    words = ["loading", loading.get("node"), loading["stage"]]
    if "progress" in loading:
        words.append(f"{loading['progress']:.0%}")
    if "eta" in loading:
        words.append(f"eta {loading['eta']:.0f}s")
    return clip(" ".join(word for word in words if word), 200)


def _parse_answer(data: bytes) -> dict[str, Any]:
    try:
        answer = json.load_object(data)
    except CortexError as exc:
        raise UpstreamError("the neuron's answer is not JSON") from exc
    return answer
