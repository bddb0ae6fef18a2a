"""The neuron's routes on loopback, with the demonstration model's text and engines without a model.

What an engine says is scripted, so that a test can hold it up, make it fail or say anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from fakes.engine import FakeCheckpoints, FakeEngine
from fakes.lifecycle import House, load_request
from prometheus_client import CollectorRegistry

from cortex.engine.request import (
    Event,
    FinishReason,
    FirstToken,
    RequestFailed,
    TokenEvent,
    TokenLogprob,
)
from cortex.engine.request import Request as EngineRequest
from cortex.neuron.activation import Activation
from cortex.neuron.admission import Admission
from cortex.neuron.api import NeuronApi, guard_of, render_error
from cortex.neuron.app import FAST_PATHS
from cortex.neuron.health import HealthMonitor
from cortex.neuron.inference import Inference, unserved
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.metrics import NeuronMetrics
from cortex.neuron.model_text import ModelText
from cortex.neuron.read_text import read_text
from cortex.neuron.readiness import Readiness
from cortex.service.edge import Edge
from cortex.service.http import Pace
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve
from cortex.wire import neuron as wire

DEMO_FILES = Path(__file__).resolve().parents[2] / "cortex" / "neuron" / "demo"
MODEL = "org/a"
END = 2553  # the demonstration model's <|im_end|>


@cache
def demo_text() -> ModelText:
    return read_text(DEMO_FILES)


def ids(text: str) -> list[int]:
    """*text* as the demonstration model's tokens, its markers as such."""
    return demo_text().tokenizer.encode(text, special=True)


@attrs.define(eq=False, slots=False)
class ScriptedEngine(FakeEngine):
    """Says ``script`` to every request, a token or an error a step; an exception in it fails the
    request. Without one it repeats the prompt, as its base does."""

    script: Sequence[int | Exception] = ()

    def _next(self, request: EngineRequest, done: int) -> Event:
        if not self.script or request.pooling is not None:
            return super()._next(request, done)
        said = self.script[min(done, len(self.script) - 1)]
        if isinstance(said, Exception):
            del self.running[request.id]
            return RequestFailed(request.id, said)
        finish = None
        if said in request.stop_ids and not request.ignore_eos:
            finish = FinishReason.STOP
        elif done + 1 == request.max_tokens:
            finish = FinishReason.LENGTH
        if finish is None:
            self.running[request.id] = (request, done + 1)
        else:
            del self.running[request.id]
        wanted = request.sampling.logprobs
        logprob = None if wanted is None else TokenLogprob(said, -float("inf"), ())
        first = FirstToken(0, 0.0, None) if done == 0 else None
        return TokenEvent(request.id, said, finish, logprob, first)


@attrs.define(eq=False)
class ServedNeuron:
    """``engine`` is the one that serves; ``client`` speaks to the neuron."""

    engine: FakeEngine
    checkpoints: FakeCheckpoints
    lifecycle: Lifecycle
    admission: Admission
    inference: Inference
    registry: CollectorRegistry
    client: httpx.AsyncClient
    url: str
    stop: trio.Event
    renewals: list[str]  # one entry for each time the process would have been replaced


@asynccontextmanager
async def served(
    make: Callable[[], FakeEngine] = FakeEngine,
    *,
    pace: Pace | None = None,
    max_running: int = 4,
    max_waiting: int = 4,
    token: str | None = None,
    readiness_seconds: float = 30.0,
    drain_seconds: float = 2.0,
    text: ModelText | None = None,
) -> AsyncIterator[ServedNeuron]:
    """A neuron with `MODEL` loaded on an engine from *make*; twenty seconds at most. *text* None is
    the demonstration model's."""
    checkpoints = FakeCheckpoints(make=lambda _: make())
    house = House(checkpoints=checkpoints, read_text=lambda _: text or demo_text())  # type: ignore[arg-type]
    no_probe: Any = None  # there are no devices to look at
    registry = CollectorRegistry()
    admission = Admission(max_running, max_waiting)
    pace = pace or Pace(commit_after=float("inf"), keep_alive=60.0, stall=5.0)
    async with house.open() as lifecycle:
        await lifecycle.load(load_request(MODEL))
        inference = Inference(lifecycle, admission, NeuronMetrics(registry), pace, lambda: 1234.5)
        listener = listen("127.0.0.1:0")
        renewals: list[str] = []
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            api = NeuronApi(
                lifecycle,
                inference,
                admission,
                HealthMonitor(no_probe, ()),
                Activation(lifecycle.load, []),
                Readiness(lifecycle, lambda: False, readiness_seconds, registry, nursery),
                wire.Discovery("host", "os", "kernel"),
                registry,
                "http://here",
                lambda: False,
                lambda: renewals.append("renewed"),
            )
            guard = guard_of(token)
            edge = Edge(api.routes(), render_error=render_error, guard=guard, ended=unserved)
            url = await nursery.start(
                partial(
                    serve,
                    app_over(edge, "neuron"),
                    listener,
                    stop=stop.wait,
                    drain_seconds=drain_seconds,
                    fast=FastRoutes(edge, FAST_PATHS),
                )
            )
            async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                engine = checkpoints.engines[MODEL.replace("/", "--")][0]
                yield ServedNeuron(
                    engine,
                    checkpoints,
                    lifecycle,
                    admission,
                    inference,
                    registry,
                    client,
                    url,
                    stop,
                    renewals,
                )
            nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait until *holds*, at most *seconds*."""
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.002)
