"""A checkpoint's logits at every position of a prompt, as its engine computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fakes.requests import ask

from cortex.engine.load.checkpoint import open_engine

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
