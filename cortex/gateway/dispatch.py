"""From a checked request to an answer that has begun: which replica, and which one after that.

Until the first byte of an answer nothing has reached the client, so that a replica that refuses, is
full or fails may be followed by another; after it, never. A server of another make is spoken to in
plain OpenAI, a neuron is told for whom it works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import attrs
import trio

from cortex.errors import CortexError, ModelNotFound, Overloaded, UpstreamError
from cortex.gateway import foreign
from cortex.gateway.affinity import affinity_key
from cortex.gateway.auth.caller import ANONYMOUS, BATCH, INTERACTIVE, Caller
from cortex.gateway.auth.usage import NO_KEY
from cortex.gateway.exchange import Exchange
from cortex.gateway.foreign_answer import ForeignResponse, ForeignStream, pack_wanted
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.router import Lease, Router
from cortex.gateway.upstream import Broken, Call, Refused, Upstream, UpstreamResponse
from cortex.service import logs
from cortex.service.http import HttpRequest
from cortex.wire import errors, json
from cortex.wire.neuron import CALLER_HEADER, PRIORITY_HEADER, SALT_HEADER

MAX_ATTEMPTS = 3  # replicas tried before the first byte
MAX_ERROR_BYTES = 64 * 1024
NEURON_PRIORITY = {INTERACTIVE: "1", BATCH: "-1"}  # a neuron serves the higher one first
# Statuses of a neuron that say "not here, not now": another replica may serve the request.
ELSEWHERE = frozenset({404, 429, 502, 503})
TOKEN_REFUSED = frozenset({401, 403})
# Statuses from 500 on that do not say that the node has failed: it knows no such route, is busy.
NO_FAULTS = frozenset({501, 503, 529})

log = logs.get("gateway.dispatch")


class Refusal(Exception):
    """A replica did not take the request; *error* says why, in case no other does."""

    def __init__(self, error: CortexError) -> None:
        super().__init__(error.message)
        self.error = error


@attrs.frozen(eq=False)
class Job:
    """What a dialect makes of a request: the upstream call without its model."""

    dialect: str
    requested: str
    path: str
    body: dict[str, Any]
    stream: bool


@attrs.frozen(eq=False)
class Dispatcher:
    """Finds replicas for jobs."""

    router: Router
    upstream: Upstream
    metrics: GatewayMetrics
    room: WaitingRoom

    @asynccontextmanager
    async def open(
        self, request: HttpRequest, exchange: Exchange, job: Job
    ) -> AsyncIterator[UpstreamResponse]:
        """The answer's head from the first replica that accepts *job*; its seat and its lease are
        held within."""
        exchange.queueing()
        deadline = trio.current_time() + self.room.patience
        caller: Caller = request.caller or ANONYMOUS
        async with self.room.seat(exchange.model, caller.key_id or NO_KEY, caller.priority):
            exchange.routing()
            session = affinity_key(request.headers, job.body)
            tried: set[str] = set()
            attempts = 0
            last: CortexError | None = None
            while attempts < MAX_ATTEMPTS:
                async with AsyncExitStack() as held:
                    try:
                        response, lease = await self._ask(
                            request, exchange, job, session, tried, held
                        )
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
        session: str | None,
        tried: set[str],
        held: AsyncExitStack,
    ) -> tuple[UpstreamResponse, Lease]:
        """Ask one replica not in *tried*. `Refusal` when another one may be asked; what the client
        did wrong is raised as it is."""
        lease = await held.enter_async_context(
            self.router.route(job.requested, exclude=frozenset(tried), affinity=session)
        )
        exchange.routed(lease)
        held.enter_context(self.metrics.in_flight(lease.model, lease.node))
        try:
            response = await held.enter_async_context(
                self.upstream.call(upstream_call(request, job, lease))
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
        raise await self._judged(response, lease, tried)

    async def _judged(
        self, response: UpstreamResponse, lease: Lease, tried: set[str]
    ) -> CortexError | Refusal:
        """What a *response* other than 200 comes to, for the client or for the next attempt."""
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
            return error
        return Refusal(error)

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


def upstream_call(request: HttpRequest, job: Job, lease: Lease) -> Call:
    """What is sent to the lease's node for *job*, on behalf of *request*."""
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
