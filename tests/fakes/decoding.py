"""A dense decoder written the slow, obvious way: no cache, no batch, one position at a time."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _rope(x: torch.Tensor, theta: float) -> torch.Tensor:
    """``(tokens, heads, dim)``, position i in row i."""
    half = x.shape[-1] // 2
    speeds = theta ** -(torch.arange(half, dtype=x.dtype) / half)
    angles = torch.outer(torch.arange(len(x), dtype=x.dtype), speeds)[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


@cache
def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in load_file(directory / "model.safetensors").items()}


def forward(directory: Path, tokens: list[int]) -> torch.Tensor:
    """fp64 logits ``(tokens, vocabulary)`` of the Qwen3 or Mistral checkpoint in *directory*."""
    w = _weights(directory)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return hidden_states(directory, tokens) @ head.T


def hidden_states(directory: Path, tokens: list[int]) -> torch.Tensor:
    """fp64 final states ``(tokens, hidden)`` of the same, normalised."""
    config = json.loads((directory / "config.json").read_text())
    w = _weights(directory)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim, eps, theta = config["head_dim"], config["rms_norm_eps"], config["rope_theta"]
    window = config.get("sliding_window") or len(tokens)
    i = torch.arange(len(tokens))
    hidden = (i[None] > i[:, None]) | (i[None] <= i[:, None] - window)
    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        y = _norm(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = (
            (y @ w[f"{p}self_attn.{name}_proj.weight"].T).view(len(tokens), -1, dim)
            for name in "qkv"
        )
        if p + "self_attn.q_norm.weight" in w:
            q = _norm(q, w[p + "self_attn.q_norm.weight"], eps)
            k = _norm(k, w[p + "self_attn.k_norm.weight"], eps)
        q, k = _rope(q, theta), _rope(k, theta)
        outs = []
        for head in range(heads):
            shared = head * kv_heads // heads
            scores = (q[:, head] @ k[:, shared].T / dim**0.5).masked_fill(hidden, -math.inf)
            outs.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(outs, -1) @ w[p + "self_attn.o_proj.weight"].T
        y = _norm(x, w[p + "post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
    return _norm(x, w["model.norm.weight"], eps)


def greedy_oracle(directory: Path, prompt: list[int], count: int) -> list[int]:
    """*count* greedy tokens after *prompt*, everything recomputed for each."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(forward(directory, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
