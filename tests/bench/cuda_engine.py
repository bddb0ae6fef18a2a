"""The engine on a GPU: right, then fast. ``python tests/bench/cuda_engine.py [SHAPE [WORKLOAD]]``

First the whole path that a GPU runs (Triton kernels, captured decode, overlapped steps) beside
torch, step by step, on the same random weights: in fp32 the tokens are the same, in bf16 logprobs
agree. Then `cortex bench engine` of SHAPE. Needs torch, triton, numpy and attrs alone.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from cortex.engine.bench import report, run, shapes
from cortex.engine.engine import Engine
from cortex.engine.kernels.choice import choose
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.request import Pooling, Request, SamplingParams, TokenEvent

CUDA = torch.device("cuda:0")
SMALL = {**shapes.SHAPES["qwen3-0.6b"], "num_hidden_layers": 4, "vocab_size": 32000}


def requests() -> list[Request]:
    rng = random.Random(5)
    made = []
    for number, length in enumerate((1, 5, 63, 64, 65, 130, 300, 700, 64, 9, 31, 200)):
        sampling = (
            SamplingParams(temperature=0.0, logprobs=1),
            SamplingParams(temperature=0.8, seed=number, top_k=40, top_p=0.9),
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=1.0, seed=number, min_p=0.05),
        )[number % 4]
        prompt = tuple(rng.randrange(30000) for _ in range(length))
        made.append(Request(str(number), prompt, sampling, 48, ignore_eos=True))
    return made


def tokens_of(engine: Engine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    for request in requests():
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    engine.close()
    return events


def engine_of(dtype: torch.dtype, *, plain: bool) -> Engine:
    plan = run.BenchPlan("small", str(CUDA), batches=(12,), prefills=(800,), requests=12)
    with mock.patch.dict(shapes.__dict__, {"SHAPES": {"small": SMALL}}):
        config = shapes.config_of("small")
    with mock.patch.object(run, "choose", TorchOps if plain else choose):
        engine, model = run._open(plan, config, CUDA, dtype, lambda line: None)
    print(f"  {type(model.ops).__name__}, {len(engine._runner._programs)} programs")
    return engine


def compare(dtype: torch.dtype) -> None:
    """Print how the two agree: tokens, and logprobs of the first token of each."""
    wanted = tokens_of(engine_of(dtype, plain=True))
    found = tokens_of(engine_of(dtype, plain=False))
    same = total = firsts = 0
    worst = 0.0
    for name, events in wanted.items():
        pairs = list(zip(events, found[name], strict=True))
        total += len(pairs)
        firsts += pairs[0][0].token == pairs[0][1].token
        for one, other in pairs:
            if one.token != other.token:
                break
            same += 1
            if one.logprob is not None:
                worst = max(worst, abs(one.logprob.logprob - other.logprob.logprob))
    print(
        f"{dtype}: {same} of {total} tokens before a first difference, {firsts} of {len(wanted)} "
        f"first tokens, logprobs within {worst:.2e}"
    )


class EvenTokens:
    """A constraint: even ids alone."""

    ended = False

    def fill_mask(self, row: np.ndarray) -> None:
        row[:] = 0x55555555

    def accept(self, token: int) -> None:
        assert token % 2 == 0


def features() -> None:
    """Constraints beside plain requests, and embeddings, in fp32 beside plain torch."""
    found = []
    for plain in (True, False):
        engine = engine_of(torch.float32, plain=plain)
        constraint = EvenTokens()
        prompt = tuple(range(100, 180))
        warm = SamplingParams(temperature=1.5, seed=1)
        engine.add(Request("even", prompt, warm, 40, ignore_eos=True, constraint=constraint))
        engine.add(Request("any", prompt, warm, 40, ignore_eos=True))
        engine.add(Request("mean", prompt, SamplingParams(), 1, pooling=Pooling.MEAN))
        engine.add(Request("last", prompt, SamplingParams(), 1, pooling=Pooling.LAST))
        tokens: dict[str, list[int]] = {"even": [], "any": []}
        vectors = {}
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    tokens[event.request_id].append(event.token)
                else:
                    vectors[event.request_id] = event.vector
        engine.close()
        assert all(token % 2 == 0 for token in tokens["even"])
        found.append((tokens, vectors))
    (wanted, vectors), (tokens, others) = found
    errors = {
        name: float(np.linalg.norm(vector - others[name]) / np.linalg.norm(vector))
        for name, vector in vectors.items()
    }
    same = {name: wanted[name] == tokens[name] for name in wanted}
    print(f"constrained and plain tokens the same: {same}; embeddings within {errors}")


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float32, torch.bfloat16):
        try:
            compare(dtype)
        except Exception as error:  # the benchmark says more
            print(f"{dtype}: failed: {error!r}"[:2000])
    try:
        features()
    except Exception as error:
        print(f"features failed: {error!r}"[:2000])
    if len(sys.argv) > 1:
        workloads = tuple(sys.argv[2:]) or run.WORKLOADS
        found = run.run(run.BenchPlan(sys.argv[1], str(CUDA), workloads=workloads), print)
        print("\n".join(report.lines(found)))


if __name__ == "__main__":
    main()
