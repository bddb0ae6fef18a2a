"""Run a role as a process: signals, the parent's end, errors in one line, exit codes."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import click
import trio

from cortex.cli.exits import FAILURE, OK, USAGE
from cortex.config.errors import ConfigError
from cortex.service import logs

log = logs.get("cli")

Stop = Callable[[], Awaitable[None]]
Role = Callable[..., Awaitable[None]]  # called with stop= and task_status=

# For the collector: how many new objects make it look at them, and how often it looks further.
COLLECT_AFTER = (10_000, 20, 50)
# The number of a descriptor that ends when the process that started us ends, however it ends.
PARENT_VARIABLE = "CORTEX_PARENT_FD"
_BIND_ERRORS = frozenset(
    {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT}
)


def _nothing() -> None:
    pass


@attrs.define
class _Life:
    """What has happened to the role so far; the role reports to it as to a `trio.TaskStatus`."""

    listening: bool = False
    forced: bool = False
    terminal: bool = False  # it was started from one, and ends with it
    on_started: Callable[[], None] = _nothing
    _hangup: trio.Event = attrs.field(factory=trio.Event)

    def hung_up(self) -> None:
        self._hangup.set()

    async def hangup(self) -> None:
        """Return after a SIGHUP; once for all that came while nobody waited."""
        await self._hangup.wait()
        self._hangup = trio.Event()

    def started(self, value: Any = None) -> None:
        self.listening = True
        self.on_started()


def spare_collector() -> None:
    """Keep the garbage collector from looking at what is there now, which stays.

    A full collection of a gateway that has started looks at 76,000 objects and held its event loop
    for 130 to 210 ms on a busy machine; what a request leaves for it is next to nothing. Not for a
    role that lets go of what it had when it started: a frozen cycle is never freed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def run_role(
    name: str,
    role: Role,
    environ: Mapping[str, str],
    on_stopping: Callable[[], None] = _nothing,
    *,
    on_started: Callable[[], None] = _nothing,
    hangups: bool = False,
) -> int:
    """Run *role* until it ends or a signal asks it to; the exit code of the process.

    The first SIGTERM or SIGINT asks it to drain, a second one ends it at once; *on_stopping* is
    called when it begins to drain (a role that may wedge arms its hard exit there), *on_started*
    when it reports that it has started. With *hangups*
    the role is given ``hangup``, which returns after each SIGHUP; a hangup because the terminal has
    gone stops it like SIGTERM. What comes out of the role is told on stderr, a line for each leaf
    of a group.
    """
    keep_standard_descriptors()
    _raise_descriptor_limit()
    life = _Life(on_started=on_started)
    if hangups:
        life.terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        role = partial(role, hangup=life.hangup)
    try:
        trio.run(partial(_main, role, life, environ, on_stopping, hangups))
    except BaseException as exc:
        found = [leaf for leaf in leaves(exc) if not isinstance(leaf, trio.Cancelled)]
        if any(not isinstance(leaf, Exception) for leaf in found):
            raise
        return _report(name, found, life)
    return FAILURE if life.forced else OK


async def _main(
    role: Role,
    life: _Life,
    environ: Mapping[str, str],
    on_stopping: Callable[[], None],
    hangups: bool,
) -> None:
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, stopping, life, nursery.cancel_scope)
        if hangups:
            await nursery.start(_watch_hangups, stopping, life)
        if environ.get(PARENT_VARIABLE, "").isdigit():
            nursery.start_soon(_watch_parent, int(environ[PARENT_VARIABLE]), stopping)

        async def stop() -> None:
            await stopping.wait()
            on_stopping()

        await role(stop=stop, task_status=life)
        nursery.cancel_scope.cancel("the role has ended")


async def _watch_signals(
    stopping: trio.Event,
    life: _Life,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if stopping.is_set():
                life.forced = True
                log.warning("stopping at once", signal=signal.Signals(number).name)
                scope.cancel("a second signal")
                return
            log.info("draining", signal=signal.Signals(number).name)
            stopping.set()


async def _watch_hangups(
    stopping: trio.Event,
    life: _Life,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if life.terminal and not _has_terminal():
                log.info("draining", reason="the terminal is gone")
                stopping.set()
            else:
                life.hung_up()


def keep_standard_descriptors() -> None:
    """Have something at the numbers 0, 1 and 2. Where a parent has closed one, the next file or
    connection would get it, and with it what a library prints."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free


def _raise_descriptor_limit() -> None:
    """As many open files as the system allows: the usual 1024 are a thousand idle connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    with suppress(ValueError, OSError):  # macOS has a hard limit that it does not let one reach
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _watch_parent(descriptor: int, stopping: trio.Event) -> None:
    """Stop when the process at the other end of *descriptor* is gone."""
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
            if os.read(descriptor, 512):
                continue
        except OSError:
            log.warning("cannot watch the parent process", descriptor=descriptor)
            return
        log.info("draining", reason="the parent process has ended")
        stopping.set()
        return


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions in *exc* that are no groups."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def _report(name: str, found: list[BaseException], life: _Life) -> int:
    refused = 0
    for leaf in found:
        if isinstance(leaf, OSError) and leaf.errno in _BIND_ERRORS and not life.listening:
            refused += 1
            _say(f"cortex {name}: cannot listen: {leaf.strerror}")
        elif isinstance(leaf, ConfigError) and not life.listening:
            refused += 1
            _say(f"cortex {name}: {leaf}")
        else:
            _say(f"cortex {name}: {describe(leaf)}")
            logging.getLogger("cortex.cli").debug("traceback", exc_info=leaf)
    return USAGE if refused else FAILURE


def _say(line: str) -> None:
    """Tell *line* on stderr. Where nobody is there any more the exit code has to do."""
    with suppress(OSError):
        click.echo(line, err=True)


def describe(exc: BaseException) -> str:
    """*exc* in one line."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def own_command(argv: list[str] | None = None, main_name: str | None = None) -> list[str]:
    """The words that start this program again: from a zipapp, a script or ``python -m cortex``."""
    argv = sys.argv if argv is None else argv
    if main_name is None:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        main_name = spec.name if spec else ""
    flags = ["-P"] if sys.flags.safe_path else []
    if main_name == "cortex.__main__":
        return [sys.executable, *flags, "-m", "cortex"]
    return [sys.executable, *flags, os.path.abspath(argv[0])]
