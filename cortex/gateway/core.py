"""The request core: an inference request from its body to its answer.

Knows neither which server carries the request nor how a model came to be loaded: it checks what the
caller may do, has the request dispatched, and hands streams to the relay. The dialects differ in
what they send upstream and in how they encode what comes back, nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import attrs

from cortex.errors import CortexError, ModelNotFound, UpstreamError, clip
from cortex.gateway.auth.accounts import Accounts, permit
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.dispatch import Dispatcher, Job
from cortex.gateway.encoder import Encoder
from cortex.gateway.exchange import Exchange
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.relay import relay
from cortex.gateway.upstream import UpstreamResponse
from cortex.service.http import HttpRequest, Pace, StreamAnswer
from cortex.wire import json, sse

MAX_ANSWER_BYTES = 256 * 1024 * 1024


@attrs.define(eq=False)
class InferenceCore:
    """Serves jobs. All collaborators belong to the application."""

    dispatcher: Dispatcher
    names: ModelNames
    metrics: GatewayMetrics
    pace: Pace
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
            request.recorded = True
            with Exchange(
                self.metrics, dialect, "", request.received_at, charge=charge
            ) as exchange:
                exchange.failed(exc)
            raise

    def _exchange(self, request: HttpRequest, job: Job) -> Exchange:
        request.recorded = True
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
        loading = self.dispatcher.router.loading(exchange.model)
        return usual if loading is None else sse.comment(_words(loading))

    def permit(self, request: HttpRequest, requested: str) -> str:
        """The id of the model called *requested*, which the caller may use. `Forbidden` when it
        may not, whether there is such a model or not; `ModelNotFound` when there is none."""
        caller, plain = request.caller, self.names.plain(requested)
        try:
            model = self.names.resolve(requested).model
        except ModelNotFound:
            permit(caller, plain, plain)
            if caller is None or not caller.models:
                raise  # with the names that are near: which it may know
            raise ModelNotFound(
                f"the model '{clip(requested)}' does not exist", param="model"
            ) from None
        permit(caller, plain, model)
        return model

    def _permitted(self, request: HttpRequest, exchange: Exchange, job: Job) -> str:
        """The model's id, when the caller may use it."""
        began = time.perf_counter()
        model = self.permit(request, job.requested)
        exchange.resolved(model)
        request.guarded += time.perf_counter() - began
        return model

    def _open(
        self, request: HttpRequest, exchange: Exchange, job: Job
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """The answer that has begun, once the caller is within its limits. What is held of them
        is given back when the exchange ends."""
        began = time.perf_counter()
        if exchange.charge is not None:
            exchange.charge.admit(job.body)
        exchange.authorised(request.guarded + time.perf_counter() - began)
        return self.dispatcher.open(request, exchange, job)


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
