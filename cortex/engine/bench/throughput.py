"""Many requests at once, of mixed lengths: the workload that small engines publish figures for."""

from __future__ import annotations

import random
import time

import attrs

from cortex.engine.bench.ceilings import Ceilings
from cortex.engine.bench.latency import Traffic
from cortex.engine.engine import Engine
from cortex.engine.request import Request, SamplingParams

LEAST, MOST = 100, 1024  # tokens of each prompt and of each completion


@attrs.frozen
class ThroughputFigure:
    """``requests`` with ``prompt_tokens`` and ``output_tokens`` in all, done in ``seconds``.

    ``floor`` are the seconds that weights, KV and products take at least when as many sequences as
    fit the batch are always decoded together.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    floor: float
    preemptions: int

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds

    @property
    def share(self) -> float:
        return self.floor / self.seconds


def throughput(
    engine: Engine,
    traffic: Traffic,
    ceilings: Ceilings,
    requests: int,
    *,
    least: int = LEAST,
    most: int = MOST,
    seed: int = 0,
) -> ThroughputFigure:
    """Run *requests* of *least* to *most* tokens in and out, all added at the start."""
    rng = random.Random(seed)
    sizes = [(rng.randint(least, most), rng.randint(least, most)) for _ in range(requests)]
    vocab = traffic.config.vocab_size
    sampling = SamplingParams(temperature=0.6)
    work = [
        Request(
            f"throughput-{number}",
            tuple(rng.randrange(vocab) for _ in range(prompt)),
            sampling,
            output,
            ignore_eos=True,
        )
        for number, (prompt, output) in enumerate(sizes)
    ]
    before = engine.stats().preemptions
    started = time.perf_counter()
    for request in work:
        engine.add(request)
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    return ThroughputFigure(
        requests=requests,
        prompt_tokens=sum(prompt for prompt, _ in sizes),
        output_tokens=sum(output for _, output in sizes),
        seconds=seconds,
        floor=_floor(sizes, engine.scheduler.max_batch, traffic, ceilings),
        preemptions=engine.stats().preemptions - before,
    )


def _floor(sizes: list[tuple[int, int]], batch: int, traffic: Traffic, ceilings: Ceilings) -> float:
    """Seconds at least: every prompt's products, then rounds of decode of the batch's longest."""
    total = sum(traffic.prefill_floor(prompt, ceilings) for prompt, _ in sizes)
    running: list[list[int]] = []  # length so far, tokens to go
    pending = [[prompt, output] for prompt, output in reversed(sizes)]
    while running or pending:
        while pending and len(running) < batch:
            running.append(pending.pop())
        steps = min(left for _, left in running)
        mean = sum(length for length, _ in running) // len(running) + steps // 2
        total += steps * traffic.decode_floor(len(running), mean, ceilings)
        running = [[length + steps, left - steps] for length, left in running if left > steps]
    return total
