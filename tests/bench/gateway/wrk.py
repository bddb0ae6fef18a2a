"""wrk as a load generator: less of the machine goes to the measuring than with our own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

# What wrk prints rounds its latencies; the script prints them itself, in microseconds.
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
%s
wrk.body = [==[%s]==]
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"done": %%d, "failures": %%d, "rate": %%f, "latencies": [%%f, %%f]}\\n',
    summary.requests - e.status, e.connect + e.read + e.write + e.status + e.timeout,
    (summary.requests - e.status) / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def available() -> bool:
    return shutil.which("wrk") is not None


def load(asked: dict[str, Any], pinned: list[str]) -> dict[str, Any]:
    """What `load.py` tells, but for first bytes and delays. Answers are not looked into."""
    headers = "\n".join(
        f'wrk.headers["{name}"] = "{value}"' for name, value in asked.get("headers", {}).items()
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "ask.lua")
        script.write_text(SCRIPT % (headers, json.dumps(asked["body"], separators=(",", ":"))))
        command = ["wrk", "-t1", f"-c{asked['connections']}", f"-d{asked['seconds']}s"]
        command += ["--timeout", "30s", "-s", str(script), asked["url"] + asked["path"]]
        out = subprocess.run([*pinned, *command], capture_output=True, text=True, check=True)
    line = next(line for line in out.stdout.splitlines() if line.startswith("RESULT "))
    told: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return told
