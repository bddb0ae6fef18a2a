"""Pre-warming: the models to load at start, one after the other, once the listener is bound."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from cortex.errors import CortexError, SourceUnavailable
from cortex.service import logs
from cortex.wire import neuron as wire

log = logs.get("neuron.activation")

# Seconds before each new attempt at a model whose files cannot be reached; then it is given up.
BACK_OFF = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)

Load = Callable[[wire.LoadRequest], Awaitable[wire.Model]]


@attrs.define(eq=False)
class Activation:
    """Loads *requests* in order through *load* (`Lifecycle.load`).

    Files that cannot be reached now are tried again; what is wrong with a model by itself is not.
    """

    _load: Load
    _requests: Sequence[wire.LoadRequest]
    _in_progress: str | None = attrs.field(default=None, init=False)
    _completed: list[str] = attrs.field(factory=list, init=False)
    _failed: dict[str, str] = attrs.field(factory=dict, init=False)
    _finished: bool = attrs.field(default=False, init=False)

    def state(self) -> wire.Activation:
        """How far it is, for ``GET /health``."""
        ids = [request.model_id for request in self._requests]
        done = {*self._completed, *self._failed, self._in_progress}
        return wire.Activation(
            state="ready" if self._finished or not ids else "pre_warming",
            pending=() if self._finished else tuple(name for name in ids if name not in done),
            in_progress=self._in_progress,
            completed=tuple(self._completed),
            failed=tuple(wire.FailedModel(name, why) for name, why in self._failed.items()),
        )

    async def run(self) -> None:
        """Try every model, then return; nothing that goes wrong with one keeps the next back."""
        for request in self._requests:
            self._in_progress = request.model_id
            try:
                await self._warm(request)
            except CortexError as exc:
                self._failed[request.model_id] = exc.message
                log.error("not activated", exc=exc, model=request.model_id)
            else:
                self._completed.append(request.model_id)
            finally:
                self._in_progress = None
        self._finished = True

    async def _warm(self, request: wire.LoadRequest) -> None:
        for pause in BACK_OFF:
            try:
                await self._load(request)
                return
            except SourceUnavailable as exc:
                log.warning(
                    "files not reachable", model=request.model_id, retry=pause, cause=exc.message
                )
            await trio.sleep(pause)
        await self._load(request)
