"""A gateway and its neurons as processes of their own, on free ports, each in its own folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from fakes.programs import program
from prometheus_client.parser import text_string_to_metric_families

from chaos.neuron import MODEL
from chaos.process import START_SECONDS, Process, free_port

DEMO = "cortex/demo"
POLL_SECONDS = 0.2
ASK_SECONDS = 10.0  # for what the harness itself asks


@attrs.define(eq=False, kw_only=True)
class Neuron(Process):
    port: int
    host: str = "127.0.0.1"
    fake: bool = True

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        await super().start()
        await self.until_said("listening" if self.fake else "activation complete|loaded model=")

    async def behave(self, **manner: Any) -> None:
        """How a fake one answers from now on."""
        async with httpx.AsyncClient(
            base_url=self.url, timeout=ASK_SECONDS, verify=False
        ) as client:
            (await client.post("/chaos", json=manner)).raise_for_status()

    async def in_flight(self) -> int:
        """Requests that it works on or lets wait, and blocks of the KV cache that they hold."""
        async with httpx.AsyncClient(
            base_url=self.url, timeout=ASK_SECONDS, verify=False
        ) as client:
            if self.fake:
                return int((await client.get("/chaos")).json()["in_flight"])
            models = (await client.get("/health")).json()["models"]
            held = ("in_flight", "queue_depth", "kv_blocks_used")
            # An engine that has made no step yet has told nothing.
            return sum(model.get(each, 0) for model in models for each in held)


def fake_neuron(folder: Path, number: int = 0, **options: Any) -> Neuron:
    port = free_port()
    host = options.get("host", "127.0.0.1")
    command = ("-m", "chaos.neuron", str(port), host)
    return Neuron(name=f"node-{number}", command=command, folder=folder, port=port, **options)


def demo_neuron(folder: Path, number: int = 0) -> Neuron:
    """The real one with the demonstration model, four sequences at a time."""
    name, port = f"node-{number}", free_port()
    config = folder / f"{name}.toml"
    state = folder / f"{name}.state"
    config.write_text(
        f'listen = "127.0.0.1:{port}"\nthreads = 1\nmax_batch = 4\nmax_queue_depth = 8\n'
        f'drain_seconds = 5\nstate_directory = "{state}"\n'
        f'[[default_models]]\nmodel_id = "{DEMO}"\ncontext = 512\n'
    )
    command = ("-m", "cortex", "neuron", "--config", str(config))
    return Neuron(name=name, command=command, folder=folder, port=port, fake=False)


# In a process of its own: a mount namespace can be entered, and SQLite's files be opened, there.
QUERY = (
    "import json, sqlite3, sys; "
    "rows = sqlite3.connect(sys.argv[1], timeout=5).execute(sys.argv[2]).fetchall(); "
    "print(json.dumps(rows))"
)


@attrs.define(eq=False, kw_only=True)
class Gateway(Process):
    """``mounts``: it has a mount namespace of its own."""

    port: int
    mounts: bool = False
    metrics_port: int
    client: httpx.AsyncClient = attrs.field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        """As its own mount namespace has it."""
        return Path(f"/proc/{self.pid}/root{self.folder}/{self.name}.state")

    async def start(self) -> None:
        await super().start()
        with trio.fail_after(START_SECONDS):
            while not await self._listens():
                assert self.alive, f"{self.name} ended:\n{self.log}"
                await trio.sleep(0.05)

    async def _listens(self) -> bool:
        try:
            return (await self.client.get("/livez")).status_code == 200
        except httpx.TransportError:
            return False

    async def fleet(self) -> Any:
        return (await self.client.get("/fleet")).raise_for_status().json()

    async def node(self, name: str) -> Any:
        return next(node for node in (await self.fleet())["nodes"] if node["name"] == name)

    async def until_healthy(self, healthy: bool = True, *names: str, seconds: float = 15) -> float:
        """Wait until the nodes (all of them without *names*) are; how long that took."""
        began = trio.current_time()
        with trio.fail_after(seconds):
            while True:
                nodes = [
                    node
                    for node in (await self.fleet())["nodes"]
                    if node["name"] in names or not names
                ]
                if all(node["healthy"] == healthy for node in nodes):
                    return trio.current_time() - began
                await trio.sleep(0.05)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called *name* with these *labels*."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        text = (await self.client.get(url)).raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def served(self) -> dict[str, int]:
        """Whole answers on record, by node."""
        return dict(
            self._recorded("SELECT node, count(*) FROM requests WHERE code = 200 GROUP BY 1")
        )

    def usage(self) -> tuple[int, int, int]:
        """Answers on record that were whole, and their prompt and completion tokens."""
        sums = "count(*), total(prompt), total(completion)"
        ((count, prompt, completion),) = self._recorded(
            f"SELECT {sums} FROM requests WHERE code = 200"
        )
        return count, int(prompt), int(completion)

    def _recorded(self, query: str) -> list[list[Any]]:
        """The rows of *query*, asked within the gateway's own mounts."""
        inside = (program("nsenter"), "-m", "-t", str(self.pid)) if self.mounts else ()
        path = str(self.folder / f"{self.name}.state" / "accounts.db")
        done = subprocess.run(
            [*inside, sys.executable, "-c", QUERY, path, query],
            check=True,
            capture_output=True,
            timeout=ASK_SECONDS,
        )
        rows: list[list[Any]] = json.loads(done.stdout)
        return rows


def gateway(
    folder: Path,
    neurons: Sequence[Neuron],
    name: str = "gateway",
    settings: str = "",
    **options: Any,
) -> Gateway:
    """A gateway over *neurons*. *settings* are lines of its ``[gateway]`` section."""
    port, metrics_port = free_port(), free_port()
    config = folder / f"{name}.toml"
    lines = [
        f'models_config = "{name}.models.toml"',
        "[gateway]",
        f'listen = "127.0.0.1:{port}"',
        f'metrics_listen = "127.0.0.1:{metrics_port}"',
        f"poll_seconds = {POLL_SECONDS}",
        *(() if "drain_seconds" in settings else ("drain_seconds = 10",)),
        settings,
        "[eviction]\nkeep_alive = -1\nmin_residency_seconds = 0",
        "[usage]\nrequest_log = true",
    ]
    lines += [
        f'[[neurons]]\nname = "{neuron.name}"\nendpoint = "{neuron.url}"' for neuron in neurons
    ]
    config.write_text("\n".join(lines))
    entries = [f'[[models]]\nid = "{MODEL}"\nvram_mb = 10\n']
    entries += [
        f'[[models]]\nid = "{DEMO}"\n',
        '[[models]]\nid = "other"\nsource = "demo"\nvram_mb = 10\n',
    ]
    (folder / f"{name}.models.toml").write_text("\n".join(entries))
    environ = {"STATE_DIRECTORY": str(folder / f"{name}.state"), **options.pop("environ", {})}
    return Gateway(
        name=name,
        command=("-m", "cortex", "gateway", "--config", str(config)),
        folder=folder,
        environ=environ,
        port=port,
        metrics_port=metrics_port,
        **options,
    )


@asynccontextmanager
async def running(gateways: Sequence[Gateway], neurons: Sequence[Neuron]) -> AsyncIterator[None]:
    """All of them, from the time when they listen and every node is healthy."""
    limits = httpx.Limits(max_keepalive_connections=0)
    try:
        async with trio.open_nursery() as nursery:
            for neuron in neurons:
                nursery.start_soon(neuron.start)
        for each in gateways:
            each.client = httpx.AsyncClient(
                base_url=each.url, timeout=ASK_SECONDS, limits=limits, verify=False
            )
            await each.start()
            await each.until_healthy()
        yield
    finally:
        for process in (*gateways, *neurons):
            process.stop()
        with trio.move_on_after(1, shield=True):
            for each in gateways:
                if hasattr(each, "client"):
                    await each.client.aclose()
