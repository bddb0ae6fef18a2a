"""A role of cortex as a process that is started, broken and looked into from outside."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
END_SECONDS = 20.0


def free_port() -> int:
    """A port that nobody listens on now, for a process that has to come back under it: none that
    the system gives to outgoing connections, which might have it meanwhile."""
    first_of_theirs = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, first_of_theirs)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@attrs.define(eq=False)
class Process:
    """*command* in a folder of its own, its words in a file there.

    *prefix* is what the command is run by (a namespace, a limit). Leaving the block kills it.
    """

    name: str
    command: Sequence[str]
    folder: Path
    environ: Mapping[str, str] = attrs.field(factory=dict)
    prefix: Sequence[str] = ()
    stderr: Path | None = None  # instead of the file
    _popen: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    async def start(self) -> None:
        """Return once it listens, for the first time or anew."""
        self._spawn()

    def _spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **self.environ}
        log, stderr = self.folder / f"{self.name}.log", self.stderr or Path(os.devnull)
        with log.open("wb") as words, stderr.open("wb", buffering=0) as errors:
            self._popen = subprocess.Popen(
                [*self.prefix, sys.executable, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words if self.stderr is None else errors,
                env=environ,
                cwd=self.folder,
            )

    async def until_said(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """The first match of *pattern* in what it has written."""
        with trio.fail_after(seconds):
            while True:
                found = re.search(pattern, self.log)
                if found:
                    return found
                assert self.alive, f"{self.name} ended:\n{self.log}"
                await trio.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Its exit status, once it has ended."""
        assert self._popen is not None
        with trio.fail_after(seconds):
            while (status := self._popen.poll()) is None:
                await trio.sleep(0.02)
        return status

    def stop(self) -> None:
        """End it for good, frozen or not."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(END_SECONDS)

    # What it holds

    def descriptors(self, *, but_to: Sequence[int] = ()) -> int:
        """How many it has, connections to the ports *but_to* excepted."""
        spared = {f"socket:[{inode}]" for inode in self._connections(but_to)}
        return sum(target not in spared for target in self._descriptors())

    def _descriptors(self) -> list[str]:
        found = []
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                found.append(os.readlink(entry.path))
            except FileNotFoundError:  # closed since
                continue
        return found

    def _connections(self, ports: Sequence[int]) -> set[str]:
        """The inodes of TCP connections to *ports*."""
        found = set()
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[2].partition(":")[2], 16) in ports:
                found.add(fields[9])
        return found

    def rss_mb(self) -> float:
        return self._status("VmRSS") / 1024

    def threads(self) -> int:
        return self._status("Threads")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        assert found is not None
        return int(found[1])
