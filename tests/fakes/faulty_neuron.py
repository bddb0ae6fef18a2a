"""The real neuron role with an engine that loses its device on demand. Run as a module.

    python -m fakes.faulty_neuron STATE_DIRECTORY

It serves the demonstration model, two sequences at a time. While STATE_DIRECTORY/fault exists, the
next call of what is named in it (`PLACES`; nothing means a step) takes it away and fails as CUDA
does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.engine.engine import Engine
from cortex.engine.load.safetensors import SafetensorsFile
from cortex.neuron import app


async def stop() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main(state: Path) -> None:
    config = NeuronConfig(
        listen="127.0.0.1:0",
        state_directory=state,
        threads=1,
        drain_seconds=2.0,
        max_batch=2,
        default_models=(DefaultModel("cortex/demo", context=512),),
    )
    async with trio.open_nursery() as nursery:

        async def role(*, task_status: trio.TaskStatus[str]) -> None:
            await app.run(config, stop=stop, task_status=task_status)
            nursery.cancel_scope.cancel()

        print(await nursery.start(role), flush=True)


PLACES: dict[str, tuple[type, str]] = {
    "step": (Engine, "step"),
    "add": (Engine, "add"),
    "abort": (Engine, "abort"),
    "close": (Engine, "close"),
    "shard": (SafetensorsFile, "read_into"),  # between two weights of a load
}


def order(state: Path, place: str) -> None:
    """Have the next call of *place* fail. At once or not at all: a running engine looks at each
    step, and would take a file that is there but not written yet for an order to break that."""
    draft = state / "fault.draft"
    draft.write_text(place)
    draft.replace(state / "fault")


def break_on_demand(flag: Path) -> None:
    for place, (owner, name) in PLACES.items():
        setattr(owner, name, _breaking(getattr(owner, name), place, flag))


def _breaking(method: Callable[..., Any], place: str, flag: Path) -> Callable[..., Any]:
    calls = 0

    def breaking(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if flag.exists() and (flag.read_text() or "step") == place:
            if place == "shard" and calls < 4:  # not before the first one
                return method(*arguments)
            flag.unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return method(*arguments)

    return breaking


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    break_on_demand(directory / "fault")
    trio.run(main, directory)
