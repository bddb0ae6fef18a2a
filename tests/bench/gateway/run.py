"""The gateway beside its peers, over one upstream, in one run; prints one Markdown table.

    python tests/bench/gateway/run.py [--litellm PYTHON] [--smg PYTHON] [--vllm-router PYTHON]
        [--sglang-router PYTHON] [--auth] [--seconds 3] [--rounds 3] [--loads TEXT]

PYTHON is that of an environment with the peer in it (``litellm[proxy]``, ``smg``, ``vllm-router``,
``sglang-router``); a peer that is not named is left out. All run at once on core 0, one is asked at
a time, each in every round; the upstream and the load are on core 1. Of the rounds the best value
counts, since a busy machine only ever adds. CPU is that of the gateway's processes for the answers
of a load; latencies are what the gateway adds to those of the upstream asked directly. Load comes
from wrk where it is installed, else, and for first bytes and delays always, from `load.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import wrk
from gateways import ANTHROPIC, OPENAI, ROUTERS, Gateway, cortex, direct, litellm, router
from process import Process, free_port, pinned
from upstream import MODEL, PACED

GATEWAY_CORE, LOAD_CORE = 0, 1
CONCURRENCY = (1, 16, 64, 256)
HERE = Path(__file__).resolve().parent


@attrs.frozen
class Load:
    """One kind of request at one concurrency."""

    kind: str
    connections: int
    path: str
    stream: bool
    paced: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind} c={self.connections}"

    def asked(self, gateway: Gateway, seconds: float) -> dict[str, Any]:
        text = f"Hello, say something nice{' ' + PACED.decode() if self.paced else ''}."
        body = {"model": MODEL, "max_tokens": 32, "stream": self.stream}
        body["messages"] = [{"role": "user", "content": text}]
        end = '"message_stop"' if self.path == ANTHROPIC else "[DONE]"
        return {
            "url": gateway.url,
            "path": self.path,
            "body": body,
            "headers": gateway.headers,
            "needs": end if self.stream else "how can I help",
            "stamps": self.paced,
            "connections": self.connections,
            "seconds": seconds,
        }


LOADS = (
    *(Load("JSON", c, OPENAI, stream=False) for c in CONCURRENCY),
    *(Load("stream", c, OPENAI, stream=True) for c in CONCURRENCY),
    *(Load("paced", c, OPENAI, stream=True, paced=True) for c in (1, 16)),
    Load("Anthropic JSON", 16, ANTHROPIC, stream=False),
    Load("Anthropic stream", 16, ANTHROPIC, stream=True),
)


@attrs.define
class Cell:
    """The best of the rounds: microseconds, milliseconds, answers per second."""

    cpu: float = float("inf")
    p50: float = float("inf")
    p99: float = float("inf")
    rate: float = 0.0
    first: float = float("inf")
    delays: tuple[float, float] = (float("inf"), float("inf"))
    failures: int = 0

    def take(self, told: dict[str, Any], cpu_seconds: float) -> None:
        self.failures += told["failures"]
        if not told["done"]:
            return
        self.cpu = min(self.cpu, cpu_seconds / told["done"] * 1e6)
        self.p50 = min(self.p50, told["latencies"][0])
        self.p99 = min(self.p99, told["latencies"][1])
        self.rate = max(self.rate, told["rate"])
        if "firsts" in told:
            self.first = min(self.first, told["firsts"][0])
            self.delays = min(self.delays, (told["delays"][0], told["delays"][1]))


Results = dict[tuple[str, str], Cell]  # by gateway and load


def generate(load: Load, asked: dict[str, Any], with_wrk: bool) -> dict[str, Any]:
    if with_wrk and not load.paced:
        return wrk.load(asked, pinned(LOAD_CORE))
    command = [*pinned(LOAD_CORE), sys.executable, str(HERE / "load.py"), json.dumps(asked)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told: dict[str, Any] = json.loads(out)
    return told


def measure(gateway: Gateway, load: Load, seconds: int, with_wrk: bool, cell: Cell) -> None:
    if load.path == ANTHROPIC and not gateway.translates:
        return
    asked = load.asked(gateway, seconds)
    # wrk does not look at what it gets: our own generator does, first.
    checked = generate(load, {**asked, "seconds": 0.2}, with_wrk=False)
    if checked["failures"] or not checked["done"]:
        cell.failures += checked["failures"] or 1
        return
    process = gateway.process
    before = process.cpu_seconds() if process else 0.0
    told = generate(load, asked, with_wrk)
    cell.take(told, (process.cpu_seconds() if process else 0.0) - before)


@contextlib.contextmanager
def running(options: argparse.Namespace, folder: Path) -> Iterator[list[Gateway]]:
    """The upstream asked directly, and every gateway there is, started and ready."""
    port = free_port()
    gateways: list[Gateway] = []
    command = [sys.executable, str(HERE / "upstream.py"), str(port)]
    upstream = Process(command, LOAD_CORE, folder / "upstream.log", {})
    url = f"http://127.0.0.1:{port}"
    try:
        upstream.wait_ready(f"{url}/health", 20)
        gateways.append(direct(url))
        gateways.append(cortex(url, folder, GATEWAY_CORE, auth=options.auth))
        if options.litellm:
            gateways.append(litellm(url, folder, GATEWAY_CORE, options.litellm))
        for name in ROUTERS:
            python = getattr(options, name.replace("-", "_"))
            if python:
                gateways.append(router(name, url, folder, GATEWAY_CORE, python))
        yield gateways
    finally:
        for gateway in gateways:
            if gateway.process is not None:
                gateway.process.end()
        upstream.end()


def known(value: float) -> bool:
    """Whether it was measured: what was not is nothing, or beyond every bound."""
    return value != 0 and math.isfinite(value)


def number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if known(value) else "-"


def rows(gateways: list[Gateway], results: Results) -> Iterator[tuple[str, list[float], int, bool]]:
    """Each row's name, its values by gateway, digits, and whether less is better."""

    def cells(load: Load) -> list[Cell]:
        return [results[gateway.name, load.key] for gateway in gateways]

    for load in LOADS:
        found = cells(load)
        alone = found[0]
        if not (load.paced and load.connections == 1):  # too few answers for a clock's ticks
            yield f"{load.key}: CPU, us", [cell.cpu for cell in found], 0, True
        if load.paced:
            yield f"{load.key}: first byte, added p50, ms", added(found, "first", alone), 2, True
            for at, name in enumerate(("p50", "p99")):
                delays = [cell.delays[at] for cell in found]
                yield f"{load.key}: a chunk's way, {name}, ms", delays, 2, True
            continue
        yield f"{load.key}: answers/s", [cell.rate for cell in found], 0, False
        for name in ("p50", "p99"):
            yield f"{load.key}: added {name}, ms", added(found, name, alone), 2, True
    processes = [gateway.process for gateway in gateways]
    yield "memory after the run, MiB", [p.rss_mb() if p else 0.0 for p in processes], 0, True
    yield "start to listening, s", [gateway.start_seconds for gateway in gateways], 2, True


def added(cells: list[Cell], name: str, alone: Cell) -> list[float]:
    """What each adds to the upstream alone, whose own value stands in its place."""
    base: float = getattr(alone, name)
    return [base, *(getattr(cell, name) - base for cell in cells[1:])]


def table(gateways: list[Gateway], results: Results) -> Iterator[str]:
    names = [f"{gateway.name} {gateway.version}".strip() for gateway in gateways]
    peers = {
        "LiteLLM": [gateway for gateway in gateways if gateway.name == "LiteLLM"],
        "the best Rust router": [gateway for gateway in gateways if gateway.rust],
    }
    peers = {name: found for name, found in peers.items() if found}
    heads = [*names, *(f"times better than {name}" for name in peers)]
    yield f"| | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name, values, digits, less in rows(gateways, results):
        if not any(map(known, values)):
            continue
        by_name = {gateway.name: value for gateway, value in zip(gateways, values, strict=True)}
        shown = [number(value, digits) for value in values]
        shown += [
            ratio(values[1], [by_name[peer.name] for peer in found], less=less)
            for found in peers.values()
        ]
        yield f"| {name} | {' | '.join(shown)} |"
    for gateway in gateways:
        failed = {load.key: results[gateway.name, load.key].failures for load in LOADS}
        told = ", ".join(f"{key}: {count}" for key, count in failed.items() if count)
        if told:
            yield f"\nFailures of {gateway.name}: {told}."


def ratio(ours: float, theirs: list[float], *, less: bool) -> str:
    """How many times better *ours* is than the best of *theirs*."""
    measured = [value for value in theirs if known(value) and value > 0]
    if not measured or not known(ours) or ours <= 0:
        return "-"
    return f"{min(measured) / ours if less else ours / max(measured):.2f}"


def caption(options: argparse.Namespace, load_before: float) -> str:
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')} UTC, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load average before {load_before:.2f}; "
        f"keys {'on' if options.auth else 'off'}; best of {options.rounds} rounds of "
        f"{options.seconds} s; load from {'wrk' if wrk.available() else 'load.py'}. The first "
        "column holds the upstream's own latencies, the others what the gateway adds; a dash is "
        "what was not measured or that the gateway cannot do.\n"
    )


def options_from(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("litellm", *ROUTERS):
        parser.add_argument(f"--{name}", metavar="PYTHON")
    parser.add_argument("--auth", action="store_true", help="with a key for cortex")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", default="", help="only loads whose name holds this")
    return parser.parse_args(arguments)


def main() -> None:
    options = options_from(sys.argv[1:])
    load_before, results = os.getloadavg()[0], Results()
    loads = [load for load in LOADS if options.loads in load.key]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(options, Path(folder)) as gateways,
    ):
        results.update({(g.name, load.key): Cell() for g in gateways for load in LOADS})
        for each in range(options.rounds):
            for gateway in gateways:
                for load in loads:
                    cell = results[gateway.name, load.key]
                    measure(gateway, load, options.seconds, wrk.available(), cell)
                print(f"round {each + 1}: {gateway.name}", file=sys.stderr, flush=True)
        print(caption(options, load_before))
        print("\n".join(table(gateways, results)))


if __name__ == "__main__":
    main()
