"""Child processes that live and end together, and end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence

import attrs
import click
import trio

from cortex.cli.exits import FAILURE, OK, USAGE
from cortex.cli.runner import PARENT_VARIABLE

# On top of a child's own drain: what it takes to unload and to end.
GRACE_SECONDS = 10.0
KILLED_SECONDS = 10.0  # a killed process that has not ended by then is stuck in its kernel


@attrs.frozen
class Child:
    """A process to be. ``drain_seconds`` is what it takes at most to finish its requests."""

    name: str
    command: Sequence[str]
    environ: dict[str, str] = attrs.field(repr=False)  # holds the token
    drain_seconds: float


Start = Callable[[Child], Awaitable[None]]


@attrs.define(eq=False)
class Family:
    """Running children, in the order in which they were started.

    A child's standard input is a pipe that nobody writes to: it ends with the supervisor, even a
    killed one, and the child drains then (`runner.PARENT_VARIABLE`). Children have sessions of
    their own, so that a Ctrl-C reaches the supervisor alone, which drains them one by one.
    """

    _running: list[tuple[Child, trio.Process]] = attrs.field(factory=list, init=False)

    async def start(self, child: Child) -> trio.Process:
        process = await trio.lowlevel.open_process(
            list(child.command),
            stdin=subprocess.PIPE,
            env=child.environ | {PARENT_VARIABLE: "0"},
            start_new_session=True,
        )
        self._running.append((child, process))
        return process

    async def drain(self) -> bool:
        """Ask each child to end, the last one started first, and kill those that take too long;
        whether none did."""
        in_time = True
        for child, process in reversed(self._running):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            with trio.move_on_after(child.drain_seconds + GRACE_SECONDS) as scope:
                await process.wait()
            if scope.cancelled_caught:
                click.echo(f"cortex up: the {child.name} does not end; killing it", err=True)
                process.kill()
                in_time = False
        return in_time

    async def end(self) -> None:
        """Kill what still runs and let go of the pipes. Bounded, and not cancelled."""
        for _, process in self._running:
            process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + KILLED_SECONDS):
            for _, process in self._running:
                await process.wait()
                if process.stdin is not None:
                    await process.stdin.aclose()


async def supervise(begin: Callable[[Start], Awaitable[bool]]) -> int:
    """Run the children that *begin* starts until a signal comes or one of them ends; the exit code.

    *begin* is given a function that starts a child, and is cancelled when it is over; if it
    returns False the children are drained and the code is 1. The first SIGINT or SIGTERM drains
    them, in the reverse order of their start, a second one kills them.
    """
    family = Family()
    over = trio.Event()
    code = OK

    def end(with_code: int) -> None:
        nonlocal code
        if not over.is_set():
            code = with_code
            over.set()

    async def start(child: Child) -> None:
        nursery.start_soon(watch, child, await family.start(child))

    async def watch(child: Child, process: trio.Process) -> None:
        status = await process.wait()
        if not over.is_set():
            click.echo(f"cortex up: the {child.name} ended {_ending(status)}", err=True)
        end(USAGE if status == USAGE else FAILURE)

    async def run_begin() -> None:
        if not await begin(start):
            end(FAILURE)

    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal code
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if over.is_set():
                    code = FAILURE
                    nursery.cancel_scope.cancel("a second signal")
                    return
                click.echo("cortex up: draining; once more stops at once", err=True)
                end(OK)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(listen)
            async with trio.open_nursery() as beginning:
                beginning.start_soon(run_begin)
                await over.wait()
                beginning.cancel_scope.cancel("it is over")
            if not await family.drain() and code == OK:
                code = FAILURE
            nursery.cancel_scope.cancel("the children have ended")
    finally:
        await family.end()
    return code


def _ending(status: int) -> str:
    if status >= 0:
        return f"with code {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"
