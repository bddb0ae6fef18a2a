"""The record of one inference request: who asked for what, where it went, how it went.

Whatever happens, an exchange ends in exactly one log line and one set of metrics.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from math import inf
from types import TracebackType

import attrs
import trio

from cortex.errors import CortexError, LoadFailed, ModelLoading, clip
from cortex.gateway import stages
from cortex.gateway.auth import usage
from cortex.gateway.auth.accounts import Charge
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.observed import Observed
from cortex.gateway.router import Lease
from cortex.gateway.stages import StageClock
from cortex.service import logs
from cortex.service.accumulators import Distribution
from cortex.service.cancellation import is_cancellation, is_drain_over
from cortex.service.edge import CLIENT_GONE
from cortex.service.http import HttpRequest
from cortex.translate.errors import anthropic_status

log = logs.get("gateway.request")

UNKNOWN = "unknown"


def unserved(request: HttpRequest, code: int, end: str) -> None:
    """The line of a request that came to no exchange: refused before it was read, or about
    something else than inference. What only reads has none."""
    if request.method == "POST":
        log.info(
            "request",
            path=clip(request.path),
            code=code,
            end=end,
            seconds=round(trio.current_time() - request.received_at, 3),
        )


@attrs.define(eq=False)
class Exchange:
    """Use as a context manager around the whole life of a request, its stream included.

    Leaving by cancellation means that the client has gone, or that the drain is over; leaving by an
    exception, that it gets an error (`failed` says which, where the exception does not leave the
    block).
    """

    metrics: GatewayMetrics
    dialect: str
    requested: str
    started_at: float  # trio's clock
    stream: bool = False
    charge: Charge | None = None  # until it is settled
    model: str = UNKNOWN
    node: str = UNKNOWN
    observed: Observed = attrs.field(factory=Observed)
    code: int = 200
    reason: str | None = None
    attempts: int = 0
    outputs: int = 0  # frames with output of the model that have passed
    _first_at: float | None = None
    _last_at: float | None = None
    _gaps: Distribution | None = None
    _refused_by: str | None = None  # the node that did not take it, until another is found
    _clock: StageClock = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._clock = StageClock(self.started_at)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if is_drain_over(error):
            self.cut("draining")
        elif is_cancellation(error):
            self.left("client_gone")
        elif error is not None and self.reason is None:
            self.failed(error)
        self._finish()

    def resolved(self, model: str) -> None:
        self.model = model

    def authorised(self, seconds: float) -> None:
        """Its key and limits took *seconds* of the time until now."""
        self._enter(self._clock.stage)
        self._clock.move(seconds, stages.RECEIVE, stages.AUTH)

    def queueing(self) -> None:
        """It waits for a seat from now on."""
        self._enter(stages.QUEUE)

    def routing(self) -> None:
        """A replica is looked for from now on."""
        self._enter(stages.ROUTE)

    def routed(self, lease: Lease) -> None:
        """A replica was found, and is asked from now on."""
        if self._refused_by is not None:
            self.metrics.retry(self.model, self._refused_by)
            self._refused_by = None
        self.node, self.attempts = lease.node, self.attempts + 1
        self._clock.asked(trio.current_time())
        if lease.cold_start:
            self._clock.move(lease.load_seconds, stages.ROUTE, stages.LOAD)

    def retried(self) -> None:
        """The replica did not take it; another one is looked for. It counts as a retry once that
        one is found."""
        self._clock.refused(trio.current_time())
        self._refused_by = self.node

    def token(self, frames: int = 1) -> None:
        """Output of the model has just passed, in as many *frames* at once. They share the time
        since the last one: they were made one after the other and came together."""
        now = self.metrics.output_at = trio.current_time()
        self.outputs += frames
        last, self._last_at = self._last_at, now
        if self._gaps is None or last is None:
            self._gaps = self.metrics.inter_tokens(self.model, self.node)
            self._first_at = last = now
            self.metrics.first_token(self.model, self.node, now - self.started_at)
            frames -= 1
        if frames:
            self._gaps.observe((now - last) / frames, frames)

    def left(self, reason: str) -> None:
        """The client has gone, or takes no data any more."""
        self.code, self.reason = CLIENT_GONE, reason

    def cut(self, reason: str) -> None:
        """The gateway itself breaks it off; the client sees its connection end."""
        self.code, self.reason = HTTPStatus.SERVICE_UNAVAILABLE.value, reason
        self.metrics.error(self.model, self.node, reason)

    def failed(self, error: BaseException) -> None:
        """The client gets *error*, as a status or, after the status, within its stream."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if not isinstance(error, CortexError):
            label = self.reason = "internal_error"
            self.code = 500
        else:
            # A neuron may invent codes: the log tells them, the label is one of our classes' own.
            label = error.code or "error"
            self.code, self.reason = self._status(error), error.error_code or label
            if isinstance(error, ModelLoading | LoadFailed):
                self._enter(self._clock.stage)
                self._clock.move(inf, stages.ROUTE, stages.LOAD)
        self.metrics.error(self.model, self.node, label)
        if self.code >= 500:
            log.warning("upstream trouble", cause=logs.cause_chain(error), node=self.node)

    def _enter(self, stage: str) -> None:
        self._clock.enter(stage, trio.current_time())

    def _status(self, error: CortexError) -> int:
        """What the client gets, or would have got had its stream not begun."""
        return anthropic_status(error) if self.dialect.startswith("anthropic") else error.status

    def settle(self) -> None:
        """Charge the caller, once. Called before the client can see that its answer is complete:
        what it has seen end is on record, whatever happens to this process then.

        Tokens are as the node has counted them at the end of its answer. Of an answer that was
        cut short they are the prompt as the node counted it at the beginning (none before that)
        and, of the completion, one for each frame of output that was passed on.
        """
        charge, self.charge = self.charge, None
        if charge is None:
            return
        prompt, cached = self.observed.prompt_tokens or 0, self.observed.cached_tokens
        completion = self.observed.completion_tokens or 0
        if self.reason is not None or not completion:
            completion = max(completion, self.outputs)
        for kind, tokens in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            if tokens:
                self.metrics.spend(charge.caller.name, self.model, kind, tokens)
        now = trio.current_time()
        charge.settle(
            usage.Entry(
                time.time(),
                charge.caller.key_id or usage.NO_KEY,
                self.model,
                self.node,
                self.dialect,
                self.code,
                prompt,
                cached,
                completion,
                None if self._first_at is None else self._first_at - self.started_at,
                now - self.started_at,
            ),
            asked=self.attempts > 0,
        )

    def _finish(self) -> None:
        self.settle()
        metrics, model, node, observed = self.metrics, self.model, self.node, self.observed
        now = trio.current_time()
        seconds = now - self.started_at
        if self.attempts and self.reason is None:  # a whole answer, which need be no stream
            metrics.output_at = now
        metrics.finished(model, node, self.dialect, self.code, seconds)
        if self.code == CLIENT_GONE:
            metrics.disconnect(model, node)
        metrics.tokens(
            model,
            node,
            prompt=observed.prompt_tokens or 0,
            completion=observed.completion_tokens or 0,
            cached=observed.cached_tokens,
        )
        spent = self._clock.end(now, observed, self._first_at, self._last_at)
        for stage, taken in spent.items():
            metrics.stage(model, node, stage, taken)
        rate = self._rate(seconds)
        if rate is not None:
            metrics.tokens_per_second(model, node, rate)
        log.info(
            "request",
            dialect=self.dialect,
            model=clip(self.requested) if model == UNKNOWN else model,
            node=node,
            code=self.code,
            end=self.reason or observed.finish_reason or "complete",
            stream=self.stream,
            seconds=round(seconds, 3),
            ttft=None if self._first_at is None else round(self._first_at - self.started_at, 3),
            prompt=observed.prompt_tokens,
            completion=observed.completion_tokens,
            rate=None if rate is None else round(rate, 1),
        )

    def _rate(self, seconds: float) -> float | None:
        """Completion tokens per second: over the decode time the neuron measured where it did,
        else over the stream's; over the whole request when that is below 0.1 s (the original's
        rule, `reference/original.md` 3.2)."""
        completion = self.observed.completion_tokens
        if not completion or self.reason is not None:
            return None
        decode = self.observed.milliseconds("decode_ms")
        if decode is not None and decode >= 100 and completion > 1:
            return (completion - 1) / (decode / 1000)
        if self._first_at is not None and self._last_at is not None:
            window = self._last_at - self._first_at
            if window >= 0.1:
                return (completion - 1) / window
        return completion / seconds if seconds > 0 else None
