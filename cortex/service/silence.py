"""Connections whose other end is out of reach: a machine without power, a network that is gone.

Nobody says goodbye then, and who only waits for an answer sends nothing that could fail. The kernel
asks the other kernel instead; a process that is busy, or stopped, answers all the same.
"""

from __future__ import annotations

import socket

# Seconds of silence before the first question, between two, and how many go unanswered; then
# milliseconds for what has been sent. A connection breaks 20 s after its last packet; a network
# that comes back before breaks nothing.
_TCP = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 20_000,
}
# What a socket is to be told, so that it breaks when its peer's machine does not answer: arguments
# of `setsockopt`. What a system lacks is left out.
BREAKS_IN_SILENCE: tuple[tuple[int, int, int], ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _TCP.items()
        if hasattr(socket, name)
    ),
)
