"""A checkpoint's logits at every position of a prompt, as its engine computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fakes.requests import ask

from cortex.engine.engine import Engine
from cortex.engine.load.checkpoint import open_engine
from cortex.engine.request import Request, SamplingParams

PROMPT = (3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26)


def logits_of(path: Path, **options: Any) -> torch.Tensor:
    """``(tokens, vocabulary)`` fp32, from fp32 activations."""
    engine = open_engine(path, device="cpu", dtype="float32", context=64, **options)
    model = engine._runner.model
    seen: list[torch.Tensor] = []
    forward = model.forward

    def watched(batch: Any, cache: Any) -> torch.Tensor:
        hidden = forward(batch, cache)
        seen.append(model.logits(hidden))
        return hidden

    model.forward = watched
    engine.add(ask("r", list(PROMPT), max_tokens=1))
    while engine.has_work:
        engine.step()
    engine.close()
    return torch.cat(seen)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference over that of *theirs*."""
    return float((ours - theirs).norm() / theirs.norm())


def captured_logits(engine: Engine, prompts: list[list[int]]) -> list[torch.Tensor]:
    """The logits of every prompt position, as the engine computes them in its chunks."""
    runner = engine._runner
    rows: dict[str, list[torch.Tensor]] = {}
    forward = runner.model.forward

    def watched(batch: Any, cache: Any) -> torch.Tensor:
        hidden = forward(batch, cache)
        parts = runner.model.logits(hidden).split([chunk.count for chunk in batch.chunks])
        for chunk, part in zip(batch.chunks, parts, strict=True):
            rows.setdefault(chunk.sequence.id, []).append(part)
        return hidden

    runner.model.forward = watched
    for i, prompt in enumerate(prompts):
        request = Request(str(i), tuple(prompt), SamplingParams(temperature=0.0), max_tokens=5)
        engine.add(request)
    while engine.has_work:
        engine.step()
    return [torch.cat(rows[str(i)]) for i in range(len(prompts))]
