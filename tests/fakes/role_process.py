"""A role of cortex as a process of its own: started, waited for, asked over HTTP, stopped."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

GATEWAY_CONFIG = """\
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
drain_seconds = 1
"""


def write_gateway_config(folder: Path) -> Path:
    """Write a configuration with free ports and an empty catalogue, and return its path."""
    path = folder / "cortex.toml"
    path.write_text(GATEWAY_CONFIG, encoding="utf-8")
    return path


class RoleProcess:
    """A child process whose output lines can be waited for. Killed on leaving the block."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path):
        self._command, self._environment, self._folder = command, environment, folder
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []

    def __enter__(self) -> RoleProcess:
        self._process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for_line(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait for an output line in which *pattern* is found and return the match."""
        while True:
            line = self._lines.get(timeout=seconds)
            assert line is not None, f"ended before {pattern!r}:\n{''.join(self.output)}"
            self.output.append(line)
            found = re.search(pattern, line)
            if found:
                return found

    def url_when_listening(self, seconds: float) -> str:
        """Wait for the line that says where the role listens and return the first URL in it."""
        return self.wait_for_line(r"listening.*?(http://[\d.]+:\d+)", seconds).group(1)

    def drained(self) -> list[str]:
        """All lines of a process that has ended."""
        self._reader.join()
        while (line := self._lines.get()) is not None:
            self.output.append(line)
        self._lines.put(None)
        return self.output

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float) -> int:
        """Return the exit status once the process has ended."""
        return self._process.wait(timeout=seconds)

    def terminate(self, seconds: float) -> int:
        """Send SIGTERM and return the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=seconds)


def get_json(url: str) -> Any:
    """Return the parsed body of a GET."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)
