"""A soak: moderate load of every kind on a gateway and a real neuron, and what they come to hold.

    PYTHONPATH=.:tests python -m chaos.soak --minutes 20

Streams and JSON in both dialects, tool calls, clients that vanish, and a model that is loaded and
unloaded all the while. Every few seconds memory, descriptors and threads are noted. The verdict:
memory stays within 5 % of what it had settled at, nothing is held at the end, every call has ended
and none has lied. Exit code 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from chaos.fleet import DEMO, Gateway, Neuron, demo_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import CHAT, MESSAGES, Client, Ledger
from chaos.process import Process

SAMPLE_SECONDS = 5.0
ROW_SECONDS = 60.0
SETTLED_AFTER = 0.25  # of the run; its first part fills caches and pools
TOLERANCE = 0.05
SESSIONS = 100  # of each client; what a gateway remembers of all is bounded, and filled so
TOOL = {
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
QUESTIONS = ("What is cortex?", "Which roles does cortex have?", "What does a neuron do?")


@attrs.frozen
class Sample:
    seconds: float
    rss_mb: float
    descriptors: int
    threads: int


@attrs.define(eq=False)
class Watched:
    """One process, and what it held at each look."""

    process: Process
    samples: list[Sample] = attrs.field(factory=list)

    def look(self, seconds: float) -> Sample:
        process = self.process
        sample = Sample(seconds, process.rss_mb(), process.descriptors(), process.threads())
        self.samples.append(sample)
        return sample

    def growth(self) -> float:
        """How far the last fifth of the run lies above what the memory had settled at."""
        last = self.samples[int(len(self.samples) * 0.8) :]
        return statistics.median(sample.rss_mb for sample in last) / self._settled - 1

    def most(self) -> float:
        """How far the highest sample since then does."""
        since = self.samples[int(len(self.samples) * SETTLED_AFTER) :]
        return max(sample.rss_mb for sample in since) / self._settled - 1

    @property
    def _settled(self) -> float:
        count = len(self.samples)
        first = self.samples[int(count * SETTLED_AFTER) : int(count * (SETTLED_AFTER + 0.2))]
        return statistics.median(sample.rss_mb for sample in first)


@attrs.define(eq=False)
class Soak:
    gateway: Gateway
    neuron: Neuron
    ledger: Ledger
    seconds: float
    pause: float
    _asked: int = 0

    async def run(self, watched: Sequence[Watched]) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self.seconds):
                async with trio.open_nursery() as soaking:
                    soaking.start_soon(self._watch, watched)
                    soaking.start_soon(self._swap)
                    soaking.start_soon(self._vanish)
                    for number in range(4):
                        soaking.start_soon(self._ask, number)
            nursery.cancel_scope.cancel("the time is over")

    async def _ask(self, number: int) -> None:
        client = Client(self.gateway.url, self.ledger, model=DEMO, sessions=SESSIONS)
        while True:
            self._asked += 1
            number += 1
            client.content = f"{QUESTIONS[number % 3]} {self._asked}"
            fields: dict[str, Any] = {"max_tokens": 24}
            path = (CHAT, MESSAGES)[number % 2]
            if number % 5 == 0:
                anthropic = {**TOOL, "input_schema": TOOL["parameters"]}
                del anthropic["parameters"]
                openai = {"type": "function", "function": TOOL}
                fields["tools"] = [anthropic if path == MESSAGES else openai]
                client.content = f"What is the weather in Rome? {self._asked}"
            with trio.CancelScope(shield=True):  # what has begun ends, so that it can be counted
                await client.ask(path, stream=number % 3 != 0, **fields)
            await trio.sleep(self.pause)

    async def _vanish(self) -> None:
        """Clients that leave in the middle of their answer."""
        client = Client(self.gateway.url, self.ledger, model=DEMO, sessions=SESSIONS)
        while True:
            with trio.move_on_after(0.1):
                await client.ask(max_tokens=400, ignore_eos=True)
            await trio.sleep(self.pause * 4)

    async def _swap(self) -> None:
        """A second model comes and goes."""
        while True:
            with trio.CancelScope(shield=True):
                for what in ("load", "unload"):
                    order = await self.gateway.client.post(
                        f"/fleet/models/{what}", json={"model": "other"}, timeout=60
                    )
                    assert order.status_code == 200, order.text
            await trio.sleep(10)

    async def _watch(self, watched: Sequence[Watched]) -> None:
        began, shown = trio.current_time(), -ROW_SECONDS
        header = "".join(f" {w.process.name} MB | fds | threads |" for w in watched)
        print(f"| minute | requests |{header}", flush=True)
        print("|---|---|" + "---|---|---|" * len(watched), flush=True)
        while True:
            now = trio.current_time() - began
            looks = [each.look(now) for each in watched]
            if now - shown >= ROW_SECONDS:
                shown = now
                cells = "".join(f" {s.rss_mb:.1f} | {s.descriptors} | {s.threads} |" for s in looks)
                print(f"| {now / 60:.0f} | {len(self.ledger.outcomes)} |{cells}", flush=True)
            await trio.sleep(SAMPLE_SECONDS)


async def main(minutes: float, pause: float) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder, ledger = Path(name), Ledger()
        neuron = demo_neuron(folder)
        over = gateway(folder, [neuron])
        async with running([over], [neuron]):
            client = Client(over.url, ledger, model=DEMO)
            for path in (CHAT, MESSAGES):
                await client.ask(path)
            before = Baseline.of(over, [neuron])
            watched = [Watched(over), Watched(neuron)]
            await Soak(over, neuron, ledger, minutes * 60, pause).run(watched)
            # Memory is judged below, by its course and not by its first value.
            await settled(over, [neuron], ledger, before, model=DEMO, growth_mb=1e9)
            ends = [each.process.descriptors() for each in watched]
    good = True
    for each, end in zip(watched, ends, strict=True):
        growth, most = each.growth(), each.most()
        good = good and growth <= TOLERANCE
        first = each.samples[0].descriptors
        print(
            f"{each.process.name}: memory {growth:+.1%} at the end, {most:+.1%} at most over its "
            f"settled value; descriptors {first} at first, {end} at the end"
        )
    print(f"requests: {dict(ledger.kinds)}")
    print("within the bounds" if good else "NOT within the bounds")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two requests")
    options = parser.parse_args()
    if options.minutes < 1:
        parser.error("in less than a minute nothing settles")
    sys.exit(trio.run(main, options.minutes, options.pause))
