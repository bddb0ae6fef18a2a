"""Whether this neuron's models answer: `/readyz`, which anybody may ask and nobody can make costly.

Each loaded model must have given a token lately, a client's or one that is asked of its engine for
this. That one takes no seat and counts in no figure of requests.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from math import inf
from typing import Any

import attrs
import trio
from prometheus_client import CollectorRegistry, Counter

from cortex.engine.request import Request, RequestFailed, SamplingParams
from cortex.errors import CortexError, InternalError
from cortex.neuron.generation import as_failure
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.residents import LoadedModel
from cortex.service import logs
from cortex.service.proof import FAILED, OK, Proof
from cortex.wire import neuron as wire

PROBE_SECONDS = 10.0
PROMPT = (0,)  # every vocabulary has this id
PRIORITY = 99_999  # before all that wait; a full batch gives tokens, which are proof

log = logs.get("neuron.readiness")


@attrs.define(eq=False)
class Readiness:
    """*seconds* is how long a token proves that a model works; 0: none is asked for. *recovering*
    tells whether this process is about to be replaced."""

    lifecycle: Lifecycle
    recovering: Callable[[], bool]
    seconds: float
    registry: CollectorRegistry
    nursery: trio.Nursery
    clock: Callable[[], float] = time.monotonic  # the engines'
    _probes: Counter = attrs.field(init=False)
    _proof: Proof = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._probes = Counter(
            "neuron_readiness_probes",
            "One-token requests of the neuron's own, for /readyz.",
            ["result"],
            registry=self.registry,
        )
        self._proof = Proof(
            self.nursery,
            self._probe,
            lambda: self.seconds,
            self._seen_at,
            lambda result: self._probes.labels(result).inc(),
            PROBE_SECONDS,
            self.clock,
        )

    async def body(self) -> dict[str, Any]:
        """The body of `/readyz`; it names no model."""
        loaded = self.lifecycle.loaded()
        body: dict[str, Any] = {"ready": False, "models": len(loaded)}
        if self.lifecycle.draining:
            return body | {"reason": "it is shutting down"}
        if self.recovering() or self.lifecycle.recovering:
            return body | {"reason": "it is recovering from a fault"}
        if loaded and self.seconds > 0:
            verdict = await self._proof.verdict(frozenset(loaded))
            ago = round(max(0.0, self.clock() - verdict.at), 1)
            body["token"] = {"result": verdict.result, "by": verdict.by, "seconds_ago": ago}
            if not verdict.ok:
                return body | {"reason": "a loaded model gives no token"}
        return body | {"ready": True}

    def _seen_at(self) -> float:
        """When the model that has been silent the longest last gave something."""
        return min((each.engine.delivered_at for each in self.lifecycle.loaded()), default=-inf)

    async def _probe(self) -> str:
        """Ask each model that has given nothing lately."""
        results: list[str] = []
        horizon = self.clock() - self.seconds
        async with trio.open_nursery() as nursery:
            for model in self.lifecycle.loaded():
                if model.engine.delivered_at <= horizon:
                    nursery.start_soon(self._ask, model, results)
        return OK if all(result == OK for result in results) else FAILED

    async def _ask(self, model: LoadedModel, results: list[str]) -> None:
        result, why = FAILED, "it took too long"
        try:
            with self.lifecycle.lease(model.model_id) as leased:
                await _token(leased)
            result = OK
        except CortexError as exc:
            why = exc.message
            if self._left(model):
                result = OK  # it is being unloaded, which is no fault
        finally:
            results.append(result)
            if result != OK:
                log.warning("no token came", model=model.model_id, why=why)

    def _left(self, model: LoadedModel) -> bool:
        states = {each.id: each.status for each in self.lifecycle.models()}
        return states.get(model.model_id) in (None, wire.UNLOADING)


async def _token(model: LoadedModel) -> None:
    """Return once the engine has given a token (or a vector); else a `CortexError`."""
    recipe = model.text.embedding
    request = Request(
        id=f"readiness-{secrets.token_hex(12)}",
        prompt=PROMPT,
        sampling=SamplingParams(temperature=0.0),
        max_tokens=1,
        caller="readiness",
        priority=PRIORITY,
        pooling=recipe.pooling if recipe.stated and recipe.refusal is None else None,
    )
    async with model.engine.stream(request) as events:
        async for batch in events:
            if isinstance(batch[-1], RequestFailed):
                raise as_failure(batch[-1].error)
            return
    raise InternalError("the engine ended a request without a token")
