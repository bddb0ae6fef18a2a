"""One task that notices, for all connections of a process, that a client has hung up.

A connection's own task does not read while a request of it is served, so it would not see the end
of the stream. The kernel tells: EPOLLRDHUP means that the peer has closed its side or the whole,
with unread data in front of it or not. A FIN counts as gone (`design.md` 13).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

POLL_SECONDS = 0.25  # between two looks where the kernel does not wake us

Gone = Callable[[], None]


class HangupWatch(Protocol):
    def watch(self, sock: socket.socket, gone: Gone) -> None:
        """Call *gone*, once, when the peer of *sock* has hung up."""
        ...

    def forget(self, sock: socket.socket) -> None:
        """Stop watching *sock*; before it is closed, since its number is then given anew."""
        ...

    async def run(self) -> None:
        """Watch until cancelled."""
        ...


def hangup_watch() -> HangupWatch:
    """The best one that this system has."""
    return EpollWatch() if hasattr(select, "epoll") else PollWatch()


@attrs.define(eq=False)
class EpollWatch:
    """Sleeps until something hangs up. Linux only."""

    _epoll: select.epoll = attrs.field(factory=lambda: select.epoll(), init=False)
    _watched: dict[int, Gone] = attrs.field(factory=dict, init=False)

    def watch(self, sock: socket.socket, gone: Gone) -> None:
        if self._epoll.closed:  # all is being cancelled
            return
        self._watched[sock.fileno()] = gone
        self._epoll.register(sock, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)

    def forget(self, sock: socket.socket) -> None:
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    async def run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for number, _ in self._epoll.poll(0):
                    self._epoll.unregister(number)
                    self._watched.pop(number)()
        finally:
            self._watched.clear()
            self._epoll.close()


@attrs.define(eq=False)
class PollWatch:
    """Looks every so often. Sees an end only once what came before it has been read."""

    _watched: dict[socket.socket, Gone] = attrs.field(factory=dict, init=False)

    def watch(self, sock: socket.socket, gone: Gone) -> None:
        self._watched[sock] = gone

    def forget(self, sock: socket.socket) -> None:
        self._watched.pop(sock, None)

    async def run(self) -> None:
        while True:
            await trio.sleep(POLL_SECONDS)
            for sock in [sock for sock in self._watched if _at_end(sock)]:
                self._watched.pop(sock)()


def _at_end(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
