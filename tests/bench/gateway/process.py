"""A process and its children: started on one core, watched, ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
END_SECONDS = 15


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pinned(core: int) -> list[str]:
    """A command's beginning that keeps it on *core*; nothing where there is one core only."""
    known = shutil.which("taskset") is not None and core < (os.cpu_count() or 1)
    return ["taskset", "-c", str(core)] if known else []


class Process:
    """*command* on *core*, its output in *log*."""

    def __init__(self, command: list[str], core: int, log: Path, env: dict[str, str]) -> None:
        self.log = log
        self.started_at = time.monotonic()
        with log.open("w") as out:
            self._popen = subprocess.Popen(
                [*pinned(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
                start_new_session=True,
            )

    def wait_ready(self, url: str, seconds: float) -> float:
        """Seconds from the start until *url* answers 200. RuntimeError when it never does."""
        while time.monotonic() < self.started_at + seconds:
            if self._popen.poll() is not None:
                break
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(url, timeout=2) as answer,
            ):
                if answer.status == 200:
                    return time.monotonic() - self.started_at
            time.sleep(0.02)
        self.end()
        raise RuntimeError(f"{url} did not come up:\n{self.log.read_text()[-2000:]}")

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree so far; resolution one tick, mostly 10 ms."""
        return sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, self._tree())) / TICKS

    def rss_mb(self) -> float:
        """Resident memory of the whole tree, MiB."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(fields[21]) for fields in map(_stat, self._tree())) * page / (1 << 20)

    def end(self) -> None:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(END_SECONDS)
                return

    def _tree(self) -> Iterator[int]:
        parents = {int(p.name): _parent(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
        wanted = {self._popen.pid}
        while True:
            more = {pid for pid, parent in parents.items() if parent in wanted} - wanted
            if not more:
                return iter(sorted(wanted))
            wanted |= more


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name; zeros for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
