"""What can be asked of a device, and what comes back from it: values only.

A job holds its inputs, its cancel flag and, for a load, its progress. The flag is set by whoever
asked, from any thread, and polled by the loop before the job, between weight shards and between
steps. Every job gets exactly one `Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from cortex.engine.request import Event, Request

if TYPE_CHECKING:  # it imports torch, which only the device's own thread needs
    from cortex.engine.engine import EngineStats


class DrivenEngine(Protocol):
    """The engine as the loop drives it (`cortex.engine.engine.Engine`)."""

    @property
    def has_work(self) -> bool: ...

    @property
    def max_context(self) -> int: ...

    @property
    def kv_bytes(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def measured_weights(self) -> int | None: ...

    @property
    def graph_bytes(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> bool: ...

    def step(self) -> Sequence[Event]: ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


ReportProgress = Callable[[str, int, int], None]
IsCancelled = Callable[[], bool]
OpenEngine = Callable[[ReportProgress, IsCancelled], DrivenEngine]


@attrs.frozen
class OpenedEngine:
    """What is told of an engine that was opened; the engine itself stays with its device."""

    max_context: int  # tokens, prompt and completion together
    kv_bytes: int
    weight_bytes: int
    measured_weights: int | None = None  # as the device tells; None where it does not
    graph_bytes: int = 0  # of captured programs

    @property
    def memory(self) -> dict[str, int]:
        """What it keeps, by ledger row; what it needs in a step is not in it."""
        rows = {"weights": self.weight_bytes, "kv": self.kv_bytes}
        return {**rows, "graphs": self.graph_bytes} if self.graph_bytes else rows


@attrs.define(eq=False, kw_only=True)
class Job:
    """Something asked of a device."""

    cancelled: bool = False


@attrs.define(eq=False)
class Open(Job):
    """Open an engine under ``key``; answered with `OpenedEngine`."""

    key: int
    open: OpenEngine
    progress: tuple[str, int, int] | None = None  # stage, bytes done, bytes in all
    stage_seconds: dict[str, float] = attrs.field(factory=dict)  # complete when it is answered


@attrs.define(eq=False)
class Close(Job):
    """Close the engine; answered with whether there was one."""

    key: int


@attrs.define(eq=False)
class Add(Job):
    """Give the engine a request; answered with None, its tokens come as `Stepped`."""

    key: int
    request: Request


@attrs.define(eq=False)
class Abort(Job):
    """Forget a request; answered with whether the engine knew it."""

    key: int
    request_id: str


@attrs.define(eq=False)
class Stats(Job):
    """Answered with the engine's `EngineStats`."""

    key: int


@attrs.define(eq=False)
class Call(Job):
    """Run a function on the device's thread; answered with what it returns."""

    fn: Callable[[], Any]


@attrs.define(eq=False)
class Stop(Job):
    """End the loop; answered with None when the engines are closed."""


@attrs.frozen(eq=False)
class Answer:
    """The end of a job: a value, or the error it failed with."""

    job: Job
    value: Any = None
    error: Exception | None = None


@attrs.frozen(eq=False)
class Stepped:
    """What one step of one engine brought, and how the engine stands after it."""

    key: int
    events: Sequence[Event]
    stats: EngineStats


@attrs.frozen(eq=False)
class Died:
    """An engine failed by itself and was closed; its device goes on."""

    key: int
    error: Exception


@attrs.frozen(eq=False)
class Faulted:
    """The device is lost to this process. Nothing but answers with `DeviceLost` follows."""

    error: Exception


Output = Answer | Stepped | Died | Faulted
