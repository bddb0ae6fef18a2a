"""Tiny random checkpoints in Hugging Face's layout, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.load.checkpoint import read_config
from cortex.engine.models.decoder import Decoder

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}


def write_checkpoint(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """A checkpoint of TINY with *changes* (None removes a member); weights of a size that makes
    greedy continuations neither constant nor undecided."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in {**TINY, **changes}.items() if v is not None}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(directory, seed=seed, dtype=dtype), directory / "model.safetensors")
    return directory


def tensors_of(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random tensors for the config.json in *directory*."""
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    model = Decoder(read_config(directory), torch.float32, cpu, TorchOps(cpu))
    tensors: dict[str, torch.Tensor] = {}
    for parameter in model.parameters():
        for name, rows in parameter.sources:
            shape = (rows, *parameter.shape[1:])
            values = torch.empty(shape)
            if len(shape) == 1:
                values.uniform_(0.5, 1.5, generator=generator)
            else:
                values.normal_(std=1.5 / shape[1] ** 0.5, generator=generator)
            tensors.setdefault(name, values.to(dtype))
    return tensors
