"""The record of one inference request: who asked for what, where it went, how it went.

Whatever happens, an exchange ends in exactly one log line and one set of metrics.
"""

from __future__ import annotations

from types import TracebackType

import attrs
import trio

from cortex.errors import CortexError, clip
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.observed import Observed
from cortex.gateway.router import Lease
from cortex.service import logs
from cortex.service.cancellation import is_cancellation

log = logs.get("gateway.request")

UNKNOWN = "unknown"
CLIENT_GONE = 499  # in metrics and logs only: nobody is there to read it


@attrs.define(eq=False)
class Exchange:
    """Use as a context manager around the whole life of a request, its stream included.

    Leaving by cancellation means that the client has gone; leaving by an exception, that it gets
    an error (`failed` says which, where the exception does not leave the block).
    """

    metrics: GatewayMetrics
    dialect: str
    requested: str
    started_at: float  # trio's clock
    stream: bool = False
    model: str = UNKNOWN
    node: str = UNKNOWN
    observed: Observed = attrs.field(factory=Observed)
    code: int = 200
    reason: str | None = None
    attempts: int = 0
    _first_at: float | None = None
    _last_at: float | None = None
    _routed_at: float | None = None
    _queued: float = 0.0

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if is_cancellation(error):
            self.left("client_gone")
        elif error is not None and self.reason is None:
            self.failed(error)
        self._finish()

    def resolved(self, model: str) -> None:
        self.model = model

    def queued(self, seconds: float) -> None:
        """It waited in the gateway for *seconds* before it was sent anywhere."""
        self._queued = seconds

    def routed(self, lease: Lease) -> None:
        """A replica was found; the time until now was spent on routing and loading."""
        now = trio.current_time()
        self.node, self.attempts = lease.node, self.attempts + 1
        if self._routed_at is None:
            spent = now - self.started_at - self._queued
            self.metrics.stage(self.model, self.node, "route", max(0.0, spent - lease.load_seconds))
            if lease.cold_start:
                self.metrics.stage(self.model, self.node, "load", lease.load_seconds)
        self._routed_at = now

    def retried(self) -> None:
        self.metrics.retry(self.model, self.node)

    def token(self) -> None:
        """Output of the model has just passed."""
        now = trio.current_time()
        if self._last_at is None:
            self._first_at = now
            self.metrics.first_token(self.model, self.node, now - self.started_at)
        else:
            self.metrics.inter_token(self.model, self.node, now - self._last_at)
        self._last_at = now

    def left(self, reason: str) -> None:
        """The client has gone, or takes no data any more."""
        self.code, self.reason = CLIENT_GONE, reason

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
            self.code, self.reason = error.status, error.error_code or label
        self.metrics.error(self.model, self.node, label)
        if self.code >= 500:
            log.warning("upstream trouble", cause=logs.cause_chain(error), node=self.node)

    def _finish(self) -> None:
        metrics, model, node, observed = self.metrics, self.model, self.node, self.observed
        now = trio.current_time()
        seconds = now - self.started_at
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
        for stage in ("queue", "prefill", "decode"):
            spent = observed.milliseconds(f"{stage}_ms")
            if spent is not None:
                here = self._queued if stage == "queue" else 0.0
                metrics.stage(model, node, stage, spent / 1000 + here)
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
