"""Where the time of a step goes on a GPU: ``python tests/bench/cuda_profile.py [SHAPE [PROMPT]]``.

The device's time by kernel: a prompt of PROMPT tokens, and 20 steps of decode of 1 and of 32.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.profiler import ProfilerActivity, profile

from cortex.engine.bench import run
from cortex.engine.bench.latency import GREEDY, prompts
from cortex.engine.bench.shapes import config_of
from cortex.engine.engine import Engine
from cortex.engine.request import Request


def drain(engine: Engine, count: int, prompt: int, tokens: int, seed: int) -> None:
    for number, ids in enumerate(prompts(count, prompt, 150_000, seed)):
        engine.add(Request(f"{seed}-{number}", ids, GREEDY, tokens, ignore_eos=True))
    while engine.has_work:
        engine.step()


def table(engine: Engine, title: str, count: int, prompt: int, tokens: int) -> None:
    drain(engine, count, prompt, tokens, seed=count + prompt)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        drain(engine, count, prompt, tokens, seed=1000 + count + prompt)
        torch.cuda.synchronize()
    print(f"\n{title}")
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    for row in rows[:12]:
        share = row.self_device_time_total / total
        print(
            f"{row.self_device_time_total / 1e3:9.2f} ms {share:6.1%} {row.count:6d} x "
            f"{row.self_device_time_total / row.count:8.1f} us  {row.key[:70]}"
        )


def main() -> None:
    shape = sys.argv[1] if len(sys.argv) > 1 else "qwen3-8b"
    prompt = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    plan = run.BenchPlan(shape, "cuda:0", batches=(32,), workloads=("latency",))
    engine, _ = run._open(
        plan, config_of(shape), torch.device("cuda:0"), torch.bfloat16, lambda line: None
    )
    table(engine, f"a prompt of {prompt}", 1, prompt, 1)
    table(engine, "20 steps of 1", 1, 16, 20)
    table(engine, "20 steps of 32", 32, 16, 20)


if __name__ == "__main__":
    main()
