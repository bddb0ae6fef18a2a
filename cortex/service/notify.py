"""What a role says to systemd, which started it, and the pings by which systemd knows it to live.

The protocol is datagrams of ``KEY=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names. Started
by anybody else a role says nothing, and no task runs for it. A message never blocks and never fails
its sender: where systemd does not take it, that is logged once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

import attrs
import trio

from cortex.service import logs

log = logs.get("service.notify")

STATUS_SECONDS = 5.0  # how often the status is looked at
# Until a process that replaces itself pings again: it starts Python and asks its devices.
REPLACING_SECONDS = 300.0
MAX_STATUS = 200  # characters


def _nothing_wrong() -> str | None:
    return None


@attrs.define(eq=False)
class Systemd:
    """The service manager of this process. Without *address* there is none.

    *watchdog* is within how many seconds it wants a ping; None when it wants none.
    """

    address: str | None = None
    watchdog: float | None = None
    _clock: Callable[[], float] = time.monotonic
    _status: str = attrs.field(default="", init=False)
    _failed: bool = attrs.field(default=False, init=False)
    _silent: bool = attrs.field(default=False, init=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Systemd:
        """The one that *environ* tells of. The watchdog holds for the process that systemd started,
        not for those that inherit its environment."""
        address = environ.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            log.warning("systemd is not told: a socket of this kind is not known", socket=address)
            address = None
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = address is not None and ours and microseconds.isdigit() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if wanted else None)

    def ready(self) -> None:
        """It serves; also at the end of a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """It reads its configuration; `ready` follows, however that went."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._clock() * 1e6:.0f}")

    def stopping(self, seconds: float) -> None:
        """It ends, which takes *seconds* at most."""
        self._status = "draining"
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}", "STATUS=draining")

    def replacing(self) -> None:
        """This process is about to execute itself, and cannot ping meanwhile."""
        patience = max(self.watchdog or 0.0, REPLACING_SECONDS)
        pings = [f"WATCHDOG_USEC={patience * 1e6:.0f}", "WATCHDOG=1"] if self.watchdog else []
        self._send("STATUS=replacing this process", *pings)

    async def run(
        self, status: Callable[[], str], wrong: Callable[[], str | None] = _nothing_wrong
    ) -> None:
        """Tell the *status* when it changes, and ping for as long as nothing is *wrong*. Until
        cancelled; returns at once when nobody listens.

        A ping is sent by the event loop, so that it proves that the loop turns.
        """
        if self.address is None:
            return
        interval = STATUS_SECONDS
        if self.watchdog is not None:
            interval = min(interval, self.watchdog / 2)
            # A process before this one may have asked for more time (`replacing`).
            self._send(f"WATCHDOG_USEC={self.watchdog * 1e6:.0f}")
        while True:
            self._tell(status())
            if self.watchdog is not None and self._well(wrong()):
                self._send("WATCHDOG=1")
            await trio.sleep(interval)

    def _tell(self, status: str) -> None:
        status = " ".join(status.split())[:MAX_STATUS]
        if status != self._status and self._status != "draining":
            self._status = status
            self._send(f"STATUS={status}")

    def _well(self, reason: str | None) -> bool:
        if reason is not None and not self._silent:
            log.error("systemd's watchdog is not answered any more", reason=reason)
        elif reason is None and self._silent:
            log.info("systemd's watchdog is answered again")
        self._silent = reason is not None
        return not self._silent

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        name = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), name)
        except (OSError, ValueError) as exc:
            if not self._failed:
                log.warning("systemd cannot be told", cause=logs.cause_chain(exc))
            self._failed = True
        else:
            self._failed = False
