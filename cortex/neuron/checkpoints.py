"""The engine's way from a place to an estimate and to an engine, behind one interface.

A place is a directory of safetensors, or a GGUF file.

Everything here blocks. torch is imported when it is first needed, not with this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import attrs

from cortex.errors import DeviceOutOfMemory
from cortex.neuron.cpu_probe import usable_cores
from cortex.neuron.jobs import DrivenEngine, IsCancelled, ReportProgress
from cortex.neuron.ledger import kv_budget, mib


@attrs.frozen
class LoadPlan:
    """How a checkpoint is going to be loaded. Bytes and tokens; ``rows`` are the ledger's.

    ``quant`` is the format that most of the weights are kept in; None is the compute dtype.
    """

    rows: dict[str, int]
    context: int  # servable
    trained_context: int
    kv_bytes_per_token: int
    architecture: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    quant: str | None = None

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@attrs.frozen
class Room:
    """The device a plan is made for: ``free`` bytes of ``total`` may be taken."""

    device: str  # torch's name
    kind: str  # cpu or cuda
    total: int
    free: int


@attrs.frozen
class Wish:
    """What a load request asks of the engine; None leaves it to the checkpoint and the device.

    ``quant`` is for weights that are not quantised yet.
    """

    dtype: str | None = None
    context: int | None = None
    quant: str | None = None


class Checkpoints(Protocol):
    """What the lifecycle needs of the engine. Both calls block."""

    def plan(self, place: Path, wish: Wish, room: Room) -> LoadPlan:
        """From headers alone. `DeviceOutOfMemory` when it does not fit, with the numbers."""
        ...

    def open(
        self,
        place: Path,
        wish: Wish,
        plan: LoadPlan,
        device: str,
        progress: ReportProgress,
        cancelled: IsCancelled,
    ) -> DrivenEngine:
        """Load it; on the device's own thread. `LoadCancelled` when told to stop."""
        ...


@attrs.frozen
class TorchCheckpoints:
    """`Checkpoints` with the real engine. None leaves a bound to the engine."""

    max_batch: int | None = None
    max_batch_tokens: int | None = None
    queue_seconds: float = math.inf

    def plan(self, place: Path, wish: Wish, room: Room) -> LoadPlan:
        import torch

        from cortex.engine.load import checkpoint

        def estimate(kv_bytes: int | None) -> checkpoint.MemoryEstimate:
            return checkpoint.estimate(
                place,
                dtype=wish.dtype,
                quant=wish.quant,
                context=wish.context,
                free_bytes=room.free,
                device=room.device,
                kv_bytes=kv_bytes,
                max_batch=self.max_batch,
                max_batch_tokens=self.max_batch_tokens,
            )

        first = estimate(None)
        budget = _kv_budget(first.rows, first.kv_bytes_per_token, first.trained_context, wish, room)
        second = estimate(budget)
        config = checkpoint.read_config(place)
        dtype = checkpoint.resolve_dtype(config, torch.device(room.device), wish.dtype)
        return LoadPlan(
            rows=dict(second.rows),
            context=second.context,
            trained_context=second.trained_context,
            kv_bytes_per_token=second.kv_bytes_per_token,
            architecture=config.architecture,
            dtype=str(dtype).removeprefix("torch."),
            parameters=second.parameters,
            quant=second.quant,
        )

    def open(
        self,
        place: Path,
        wish: Wish,
        plan: LoadPlan,
        device: str,
        progress: ReportProgress,
        cancelled: IsCancelled,
    ) -> DrivenEngine:
        from cortex.engine.load import checkpoint

        return checkpoint.open_engine(
            place,
            device=device,
            dtype=wish.dtype,
            quant=wish.quant,
            context=wish.context,
            kv_bytes=plan.rows["kv"],
            max_batch=self.max_batch,
            max_batch_tokens=self.max_batch_tokens,
            queue_seconds=self.queue_seconds,
            progress=progress,
            cancelled=cancelled,
        )


def _kv_budget(
    rows: Mapping[str, int], bytes_per_token: int, trained_context: int, wish: Wish, room: Room
) -> int:
    """Bytes of cache beside the other *rows*, or `DeviceOutOfMemory`."""
    needed = sum(size for name, size in rows.items() if name != "kv")
    if needed > room.free:
        raise DeviceOutOfMemory(
            f"the model needs {mib(needed)} MiB beside its cache, {room.free >> 20} MiB are free",
            extras={"required_mb": mib(needed), "free_mb": room.free >> 20},
        )
    return kv_budget(
        kind=room.kind,
        total=room.total,
        remaining=room.free - needed,
        bytes_per_token=bytes_per_token,
        context=min(wish.context or trained_context, trained_context),
        explicit_context=wish.context is not None,
    )


def torch_threads(threads: int | None) -> Callable[[], None]:
    """What a device thread does first: import torch, and give it *threads* cores.

    None stands for every physical core this process may use. The setting is the calling thread's.
    """

    def prepare() -> None:
        import torch

        torch.set_num_threads(threads if threads is not None else usable_cores())

    return prepare


def free_torch_memory() -> None:
    """Give the memory of dropped tensors back; on the device's own thread."""
    from cortex.engine.memory import give_back

    give_back()
