"""The real neuron role with an engine that loses its device on demand. Run as a module.

    python -m fakes.faulty_neuron STATE_DIRECTORY

It serves the demonstration model. While STATE_DIRECTORY/fault exists, the next step takes it away
and fails as CUDA does.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.engine.engine import Engine
from cortex.engine.request import Event
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
        default_models=(DefaultModel("cortex/demo", context=512),),
    )
    async with trio.open_nursery() as nursery:

        async def role(*, task_status: trio.TaskStatus[str]) -> None:
            await app.run(config, stop=stop, task_status=task_status)
            nursery.cancel_scope.cancel()

        print(await nursery.start(role), flush=True)


def break_steps(flag: Path) -> None:
    step = Engine.step

    def breaking(self: Engine) -> list[Event]:
        if flag.exists():
            flag.unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return step(self)

    Engine.step = breaking  # type: ignore[method-assign]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    break_steps(directory / "fault")
    trio.run(main, directory)
