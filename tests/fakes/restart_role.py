"""A process with a device, a model and a listener, that can be made to fault. Run as a module.

    python -m fakes.restart_role STATE_DIRECTORY

Prints its port. A connection sends one line: ``who`` is answered with the process id, a number made
at start, and the models that are loaded; ``renew`` orders a restart; ``fault`` breaks the device
while the connection's own request runs, and is answered with how that request ended.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import trio
from fakes.engine import FakeCheckpoints, FakeDeviceFault, request
from fakes.lifecycle import FakeSources, TextReader, slot

from cortex.errors import DeviceLost
from cortex.neuron import resident_file
from cortex.neuron.activation import Activation
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.restart import Restarter, inherited_listener
from cortex.service.serve import listen
from cortex.wire.neuron import LoadRequest

BOOT = secrets.token_hex(4)


async def main(state: Path) -> None:
    inherited = inherited_listener(os.environ)
    listener = inherited or listen("127.0.0.1:0")
    device, checkpoints = slot(), FakeCheckpoints()
    lifecycle = Lifecycle((device,), FakeSources(), checkpoints, TextReader())
    legacy = resident_file.read(state)
    restarter = Restarter(state, lifecycle.requests, listener.dup(), farewell=0.2)
    lifecycle.on_device_fault = restarter.fault
    wanted = legacy.requests if inherited else (LoadRequest("a"), LoadRequest("b", context=9))
    activation = Activation(lifecycle.load, wanted)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            word = await stream.receive_some(100)
            if word == b"fault\n":
                await stream.send_all(await fault())
            elif word == b"renew\n":
                lifecycle.pause()
                restarter.renew()
                await stream.send_all(b"restarting\n")
            else:
                names = [f"{r.model_id}:{r.context}" for r in lifecycle.requests()]
                await stream.send_all(f"{os.getpid()} {BOOT} {','.join(names)}\n".encode())

    async def fault() -> bytes:
        checkpoints.engines["a"][0].step_error = FakeDeviceFault("illegal address")
        with lifecycle.lease("a") as loaded:
            async with loaded.engine.stream(request("r")) as events:
                try:
                    await events.receive()
                except DeviceLost as exc:
                    return f"{type(exc).__name__}\n".encode()
        return b"served\n"

    async with trio.open_nursery() as nursery:
        await nursery.start(device.thread.run)
        await nursery.start(lifecycle.run)
        nursery.start_soon(restarter.run)
        await activation.run()
        resident_file.settle(state)
        if inherited is None:
            print(listener.getsockname()[1], flush=True)
        listener.setblocking(False)
        sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await trio.serve_listeners(answer, sockets)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
