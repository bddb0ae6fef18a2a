"""What NVML and torch say of this host's GPUs, asked by a child process: both may hang for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

Json = dict[str, Any]

SECONDS = 90.0  # importing torch from a cold disk takes half a minute


def look(command: Sequence[str], seconds: float = SECONDS) -> Json:
    """The lines of the child that *command* starts: ``nvml``, ``torch`` and, where it did not end
    well, ``error``."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    found: Json = {}
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
            if process.returncode:
                found["error"] = f"the look at the devices ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            found["error"] = f"no answer within {seconds:g} s"
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    for line in output.splitlines():
        with suppress(ValueError):
            found |= json.loads(line)
    return found
