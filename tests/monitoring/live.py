"""`cortex up` as a process with traffic of all kinds, and a Prometheus that scrapes it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import yaml
from fakes.programs import program
from fakes.role_process import RoleProcess, get_json
from fakes.tls import pem, trusting
from monitoring import gpu_node
from monitoring.shipped import ROOT, RULES, SCRAPE

TOKEN = "a-token-of-this-test"
START_SECONDS = 90.0

GATEWAY = f"""\
models_config = "models.toml"
[gateway]
drain_seconds = 1
tls_certificate = "{pem("one")}"
tls_key = "{pem("one")}"
[eviction]
keep_alive = "500ms"
min_residency_seconds = 0
"""
MODELS = """\
[[models]]
id = "cortex/demo"
[[models]]
id = "guest"
source = "demo"
vram_mb = 300
keep_alive = 0 # leaves when its request is done, however quick the rounds are
[[models]]
id = "broken"
source = "/nowhere"
vram_mb = 300
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@attrs.frozen
class Cortex:
    """A `cortex up` that serves. Addresses are host and port."""

    api: str
    metrics: str
    neuron: str
    trust: ssl.SSLContext

    def exposition(self, role: str) -> str:
        """The metrics of the *role* as text."""
        if role == "gateway":
            request = urllib.request.Request(f"http://{self.metrics}/metrics")
        else:
            request = urllib.request.Request(
                f"http://{self.neuron}/metrics", headers={"authorization": f"Bearer {TOKEN}"}
            )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def post(self, path: str, body: dict[str, Any], read: int = -1) -> int:
        """Send *body*, read so many bytes of the answer and leave; the status."""
        request = urllib.request.Request(
            f"https://{self.api}{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20, context=self.trust) as answer:
                answer.read(read)
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                error.read()
            return error.code

    def round(self) -> None:
        """One request of each kind: whole, streamed, in other dialects, left, loading, wrong."""
        ask = [{"role": "user", "content": "Which roles does cortex have? " * 20}]
        chat = {"model": "cortex/demo", "messages": ask, "max_tokens": 24}
        path = "/v1/chat/completions"
        self.post(path, chat)
        self.post(path, {**chat, "stream": True})
        self.post("/v1/messages", {**chat, "stream": True})
        self.post(path, {**chat, "stream": True, "max_tokens": 1500, "ignore_eos": True}, read=200)
        self.post(path, {**chat, "model": "guest"})
        self.post(path, {**chat, "model": "broken"})
        self.post(path, {**chat, "model": "nobody"})


@contextmanager
def cortex_up(folder: Path) -> Iterator[Cortex]:
    (folder / "cortex.toml").write_text(GATEWAY)
    (folder / "models.toml").write_text(MODELS)
    ports = free_ports(3)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CORTEX_CONFIG": str(folder / "cortex.toml"),
        "NEURON_TOKEN": TOKEN,
        "STATE_DIRECTORY": str(folder / "state"),
        "SSL_CERT_FILE": str(pem("one")),
    }
    flags = zip(("--port", "--metrics-port", "--neuron-port"), map(str, ports), strict=True)
    command = [sys.executable, "-m", "cortex", "up", *(word for flag in flags for word in flag)]
    with RoleProcess(command, environment, folder) as process:
        process.wait_for_line("cortex is up", START_SECONDS)
        try:
            yield Cortex(*(f"127.0.0.1:{port}" for port in ports), trusting("one"))
        finally:
            process.terminate(30)


@contextmanager
def traffic(cortex: Cortex) -> Iterator[None]:
    """`Cortex.round` again and again while the block lasts."""
    stop = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        while not stop.wait(0.2):
            try:
                cortex.round()
            except Exception as exc:  # shown below: a thread's own would be lost
                errors.append(exc)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


@attrs.frozen
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        answer = get_json(f"{self.url}/api/v1/{path}?{query}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """What an instant query gives, without what is no number."""
        result = self.get("query", query=query)["result"]
        values = [float(series["value"][1]) for series in result]
        return [value for value in values if value == value]  # NaN does not equal itself


def configuration(cortex: Cortex, gpu: str, folder: Path) -> dict[str, Any]:
    """The shipped one, with addresses and intervals of the test, and the GPU node beside."""
    shipped = yaml.safe_load(SCRAPE.read_text())
    jobs = {job["job_name"]: job for job in shipped["scrape_configs"]}
    for job in jobs.values():
        job["scrape_interval"] = "1s"
    (folder / "token").write_text(TOKEN)
    jobs["cortex-neuron"]["authorization"]["credentials_file"] = str(folder / "token")
    jobs["cortex-gateway"]["static_configs"][0]["targets"] = [cortex.metrics]
    jobs["cortex-neuron"]["static_configs"][0]["targets"] = [cortex.neuron]
    more = [
        {
            "job_name": f"{role} of GPUs",
            "scrape_interval": "1s",
            "metrics_path": f"/{role}",
            "static_configs": [{"targets": [gpu], "labels": labels}],
        }
        for role, labels in (("gateway", {}), ("neuron", {"node": gpu_node.NODE}))
    ]
    return {
        "global": {"evaluation_interval": "1s"},
        "rule_files": [str(file) for file in RULES],
        "scrape_configs": [*jobs.values(), *more],
    }


@contextmanager
def prometheus(cortex: Cortex, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration that scrapes *cortex* and a GPU node."""
    (port,) = free_ports(1)
    with gpu_node.served() as gpu:
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(configuration(cortex, gpu, folder)))
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with RoleProcess(command, os.environ, folder) as process:
            process.wait_for_line("Server is ready to receive web requests", 60)
            try:
                yield Prometheus(f"http://127.0.0.1:{port}")
            finally:
                process.terminate(30)


def until(check: Any, seconds: float) -> Any:
    """What *check* gives once it is true, or at last after *seconds*. Asks twice a second."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def families(exposition: str) -> dict[str, str]:
    """Name (as samples have it, a histogram's without its endings) -> type."""
    found = dict(re.findall(r"^# TYPE (\S+) (\w+)$", exposition, re.MULTILINE))
    with contextlib.suppress(KeyError):
        for name in [name for name in found if name.endswith("_created")]:
            del found[name]
    return found
