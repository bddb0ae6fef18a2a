"""systemd's end of the notification socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType


class FakeSystemd:
    """Takes notifications on a socket in *folder*, or on an abstract one. Closed with the block."""

    def __init__(self, folder: Path | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if folder is None:
            self.address = f"@cortex-test-{os.getpid()}-{id(self):x}"
            self._socket.bind("\0" + self.address[1:])
        else:
            self.address = str(folder / "notify")
            self._socket.bind(self.address)

    def __enter__(self) -> FakeSystemd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def heard(self) -> list[dict[str, str]]:
        """The messages that have come since the last call."""
        found = []
        self._socket.setblocking(False)
        while True:
            try:
                found.append(_read(self._socket.recv(4096)))
            except BlockingIOError:
                return found

    def wait_for(self, key: str, seconds: float) -> dict[str, str]:
        """Wait for a message that has *key*, dropping those before it. TimeoutError."""
        self._socket.settimeout(seconds)
        while True:
            message = _read(self._socket.recv(4096))
            if key in message:
                return message


def _read(message: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in message.decode().split("\n"))
