"""Decoding of a random checkpoint on the CPU, without HTTP: ``python tests/bench/decode.py``.

The shape is Qwen3-0.6B's (28 layers, hidden 1024, 16 heads, 8 KV heads, vocabulary 151,936), the
weights are random, in bfloat16. Prints the median and the best step with 1 and 8 sequences, and,
for scale, how long copying the weights takes in the same run (read and written; a step only reads).
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the neuron sets it

import torch

from cortex.engine.engine import Engine
from cortex.engine.load.checkpoint import open_engine
from cortex.engine.request import Request, SamplingParams

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def make(directory: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(directory)


def measure(engine: Engine, sequences: int, prompt: int, tokens: int) -> None:
    for number in range(sequences):
        ids = tuple(random.randrange(150_000) for _ in range(prompt))
        engine.add(Request(f"{number}", ids, SamplingParams(temperature=0), max_tokens=tokens))
    steps: list[float] = []
    while engine.has_work:
        started = time.perf_counter()
        events = engine.step()
        if len(events) == sequences:
            steps.append(time.perf_counter() - started)
    steps.sort()
    median, best = steps[len(steps) // 2], steps[0]
    print(
        f"sequences={sequences} context={prompt} median={median * 1000:.1f} ms "
        f"({sequences / median:.1f} tok/s) best={best * 1000:.1f} ms "
        f"({sequences / best:.1f} tok/s)"
    )


def copy_seconds(size: int) -> float:
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    random.seed(0)
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        engine = open_engine(Path(place), device="cpu", kv_bytes=2 << 30)
        size = engine.weight_bytes
        print(f"weights={size >> 20} MiB, a copy of them takes {copy_seconds(size) * 1000:.1f} ms")
        measure(engine, 1, 16, 8)
        for sequences, prompt, tokens in ((1, 128, 60), (8, 128, 40)):
            measure(engine, sequences, prompt, tokens)
        engine.close()


if __name__ == "__main__":
    main()
