"""A whole benchmark of one shape on one device: ceilings, latency table, prefill, throughput."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from cortex.engine.bench.ceilings import Ceilings, measure
from cortex.engine.bench.latency import DecodeFigure, PrefillFigure, Traffic, decode, prefill
from cortex.engine.bench.shapes import config_of
from cortex.engine.bench.throughput import LEAST, MOST, ThroughputFigure, throughput
from cortex.engine.cache import KVCache, block_size_of, bytes_per_token
from cortex.engine.engine import Engine
from cortex.engine.graphs import capture_for
from cortex.engine.kernels.choice import choose
from cortex.engine.load.random import fill_randomly
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.decoder import Decoder
from cortex.engine.runner import Runner

WORKLOADS = ("latency", "throughput")
Say = Callable[[str], None]


@attrs.frozen
class BenchPlan:
    """What is measured. ``batches`` with ``context`` tokens each, ``steps`` of each; prompts of
    ``prefills`` tokens; ``requests`` of ``least`` to ``most`` tokens in and out."""

    shape: str
    device: str
    dtype: str = "bfloat16"
    workloads: tuple[str, ...] = WORKLOADS
    batches: tuple[int, ...] = (1, 8, 32, 256)
    context: int = 1024
    steps: int = 48
    prefills: tuple[int, ...] = (2048, 8192)
    requests: int = 256
    least: int = LEAST
    most: int = MOST
    max_batch_tokens: int = 8192

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        lengths = [2 * self.most] if "throughput" in self.workloads else []
        if "latency" in self.workloads:
            lengths += [self.context + self.steps + 8, *(n + 1 for n in self.prefills)]
        return max(lengths)

    @property
    def max_batch(self) -> int:
        wanted = list(self.batches) if "latency" in self.workloads else [1]
        if "throughput" in self.workloads:
            wanted.append(self.requests)
        return max(wanted)

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV for everything that runs at once."""
        wanted = [self.longest]
        if "latency" in self.workloads:
            wanted.append(max(self.batches) * (self.context + self.steps + 8 + 64))
        if "throughput" in self.workloads:
            wanted.append(self.requests * (self.least + self.most + 64))
        return max(wanted)


@attrs.frozen
class BenchReport:
    """What was measured. ``kernels`` is the name of the set that ran."""

    plan: BenchPlan
    kernels: str
    weight_bytes: int
    kv_token_bytes: int
    ceilings: Ceilings
    decodes: tuple[DecodeFigure, ...] = ()
    prefills: tuple[PrefillFigure, ...] = ()
    throughput: ThroughputFigure | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; seconds and bytes, with rates and shares."""
        body = attrs.asdict(self)
        for name in ("decodes", "prefills"):
            for entry, figure in zip(body[name], getattr(self, name), strict=True):
                entry |= {"rate": figure.rate, "share": figure.share}
        if self.throughput is not None:
            body["throughput"] |= {"rate": self.throughput.rate, "share": self.throughput.share}
        return body


def run(plan: BenchPlan, say: Say = lambda line: None) -> BenchReport:
    """Carry *plan* out; *say* hears what is being done. The device must be free for it."""
    device, dtype = torch.device(plan.device), getattr(torch, plan.dtype)
    say("measuring the device")
    ceilings = measure(device, dtype)
    config = config_of(plan.shape)
    say(f"making random weights of {plan.shape}")
    engine, model = _open(plan, config, device, dtype, say)
    traffic = Traffic(config, model.matrix_bytes, bytes_per_token(config, dtype))
    report = BenchReport(
        plan, type(model.ops).__name__, model.bytes, traffic.kv_token_bytes, ceilings
    )
    try:
        if "latency" in plan.workloads:
            report = _latency(plan, engine, traffic, report, say)
        if "throughput" in plan.workloads:
            say(f"throughput of {plan.requests} requests")
            figure = throughput(
                engine, traffic, ceilings, plan.requests, least=plan.least, most=plan.most
            )
            report = attrs.evolve(report, throughput=figure)
    finally:
        engine.close()
    return report


def _latency(
    plan: BenchPlan, engine: Engine, traffic: Traffic, report: BenchReport, say: Say
) -> BenchReport:
    ceilings = report.ceilings
    prefills = []
    for tokens in plan.prefills:
        say(f"a prompt of {tokens} tokens")
        prefills.append(prefill(engine, traffic, ceilings, tokens))
    decodes = []
    for batch in plan.batches:
        say(f"decode of {batch}")
        decodes.append(decode(engine, traffic, ceilings, batch, plan.context, plan.steps))
    return attrs.evolve(report, decodes=tuple(decodes), prefills=tuple(prefills))


def _open(
    plan: BenchPlan, config: ModelConfig, device: torch.device, dtype: torch.dtype, say: Say
) -> tuple[Engine, Decoder]:
    """An engine with room for everything in *plan*, and its model."""
    ops = choose(device)
    model = Decoder(config, dtype, device, ops)
    fill_randomly(model)
    size = block_size_of(device)
    blocks = -(-plan.kv_tokens // size) + plan.max_batch
    cache = KVCache(config, blocks=blocks, block_size=size, dtype=dtype, device=device)
    runner = Runner(
        model,
        cache,
        max_batch=plan.max_batch,
        max_context=plan.longest + size,
        capture=capture_for(device, ops),
    )
    say("preparing steps")
    runner.prepare(lambda stage, done, total: None, lambda: False)
    engine = Engine(
        runner,
        max_batch=plan.max_batch,
        max_batch_tokens=max(plan.max_batch_tokens, plan.max_batch),
        max_context=plan.longest + size,
        weight_bytes=model.bytes,
        overlap=device.type == "cuda",
    )
    return engine, model
