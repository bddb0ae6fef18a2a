"""A device fault cannot be mended in this process, so the process replaces itself.

It notes which models it had, gives the answers that are under way a moment, and executes itself
again under the same process id, handing the listening socket over. It waits for no thread: the one
that owns the device may be stuck for ever. A watchdog in C ends the process even when no Python
runs any more. A neuron that faults again and again gives up with `GAVE_UP`, for its supervisor.

The same way an idle neuron is made new by order, against fragmented memory; that counts as no
fault.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from cortex.neuron import resident_file
from cortex.neuron.loop_guard import LoopGuard
from cortex.service import logs
from cortex.service.notify import Systemd
from cortex.wire import neuron as wire

log = logs.get("neuron.restart")

LISTEN_FD = "CORTEX_NEURON_LISTEN_FD"
GAVE_UP = 70  # EX_SOFTWARE: faulted too often
# What waits has been answered in memory when the fault is known; this is for the bytes to leave.
FAREWELL_SECONDS = 1.0
# After this the process ends without Python's help.
DEADLINE_SECONDS = 15.0

Execute = Callable[[str, list[str], dict[str, str]], NoReturn]


def command_line() -> list[str]:
    """How this process was started, so that it can be started so again (zipapps too)."""
    return [sys.executable, *sys.orig_argv[1:]]


def inherited_listener(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket of the process before this one; None at a first start.

    The variable is taken out of *environ*, so that no child finds it.
    """
    number = environ.pop(LISTEN_FD, None)
    if number is None or not number.isdigit():
        return None
    try:
        listener = socket.socket(fileno=int(number))
    except OSError as exc:
        log.error("the inherited listener is no socket", exc=exc)
        return None
    try:
        accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        accepts = 0
    if not accepts:
        log.error("the inherited listener does not listen", fd=number)
        listener.detach()  # whatever it is, it is not ours to close
        return None
    listener.set_inheritable(False)
    return listener


def close_on_exec(keep: int) -> None:
    """Let no descriptor but *keep* and the standard ones survive an exec.

    Python's own never do; drivers and libraries are less careful.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for number in numbers:
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                os.set_inheritable(number, False)


def arm_watchdog(seconds: float) -> None:
    """End the process after *seconds*, even if no Python code can run by then."""
    faulthandler.dump_traceback_later(seconds, exit=True)


@attrs.define(eq=False)
class Restarter:
    """Replaces the process when `fault` or `renew` was called.

    *requests* gives the models to load again. *listener* is the socket to hand over (a duplicate,
    since servers close theirs). *draining* is whether the process is about to end by itself.
    *execute* is `os.execve` and *leave* `os._exit`, except in tests.
    """

    _state_directory: Path
    _requests: Callable[[], Sequence[wire.LoadRequest]]
    _listener: socket.socket
    _environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    _execute: Execute = os.execve
    _leave: Callable[[int], NoReturn] = os._exit
    _arm: Callable[[float], None] = arm_watchdog
    _wall: Callable[[], float] = time.time
    _farewell: float = FAREWELL_SECONDS
    _draining: Callable[[], bool] = lambda: False
    _systemd: Systemd = attrs.field(factory=Systemd)
    _faulted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _reason: str = attrs.field(default="", init=False)
    _by_order: bool = attrs.field(default=False, init=False)

    def fault(self, device: int, error: object) -> None:
        """Device *device* is lost to this process. Returns at once; `run` does the rest."""
        if not self._faulted.is_set():
            self._reason = f"device {device}: {error}"
            self._faulted.set()

    def renew(self) -> None:
        """Replace this process although nothing is wrong. Returns at once, as `fault` does."""
        if not self._faulted.is_set():
            self._reason, self._by_order = "by order", True
            self._faulted.set()

    @property
    def faulted(self) -> bool:
        """Whether this process is about to be replaced."""
        return self._faulted.is_set()

    async def run(self) -> None:
        """Wait for a fault; then this process ends, one way or another.

        When it is draining it is about to end anyway, and this returns.
        """
        await self._faulted.wait()
        if self._draining():
            log.error("not replaced while draining", reason=self._reason)
            return
        self._arm(DEADLINE_SECONDS)
        allowed = self._record()
        await trio.sleep(self._farewell)
        if allowed and not self._draining():
            self._replace()
        else:
            self._give_up()

    def _record(self) -> bool:
        """Write what the next process needs. False when there have been too many restarts."""
        requests = tuple(self._requests())
        before = resident_file.read(self._state_directory)
        guard = LoopGuard(times=before.restarts)
        faulted = not self._by_order
        allowed = guard.allow(self._wall()) if faulted else True
        recoveries = before.recoveries + (allowed and faulted)
        legacy = resident_file.Legacy(requests, guard.times, recoveries)
        try:
            resident_file.write(self._state_directory, legacy)
        except OSError as exc:
            # Without a record the restarts cannot be counted, but a faulted neuron serves nobody.
            log.error("resident set not written", exc=exc, models=len(requests))
        tell = log.error if faulted else log.info
        tell(
            "replacing this process" if allowed else "too many restarts",
            reason=self._reason,
            models=len(requests),
            restarts=len(guard.times),
        )
        return allowed

    def _replace(self) -> None:
        arguments = command_line()
        number = self._listener.fileno()
        environ = {**self._environ, LISTEN_FD: str(number)}
        try:
            close_on_exec(keep=number)
            os.set_inheritable(number, True)
            self._systemd.replacing()
            sys.stderr.flush()
            self._execute(arguments[0], arguments, environ)
        except OSError as exc:
            log.error("cannot execute itself", exc=exc, command=" ".join(arguments))
            self._give_up()

    def _give_up(self) -> None:
        sys.stderr.flush()
        self._leave(GAVE_UP)
