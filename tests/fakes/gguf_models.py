"""Tiny random models as GGUF files, written by the format's own package the way that llama.cpp's
converter does: its names, its order of dimensions, its order of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from fakes.gguf_tokenizers import put
from fakes.packed import random_packed

from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.models.decoder import Decoder
from cortex.engine.models.fields import Fields
from cortex.engine.models.registry import configure
from cortex.engine.quant.types import QuantType

# 256 is the block of the K formats; everything else is as small as that lets it be.
SMALL = {
    "vocab_size": 131,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

Weights = dict[str, tuple[QuantType | None, torch.Tensor]]
Choose = Callable[[str], QuantType | None]


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    """A config.json; None removes a member."""
    named = {
        "architectures": [f"{ARCHITECTURES[model_type]}ForCausalLM"],
        "model_type": model_type,
        "tie_word_embeddings": False,
    }
    return {k: v for k, v in {**SMALL, **named, **changes}.items() if v is not None}


def weights_of(config: Mapping[str, Any], choose: Choose, seed: int = 0) -> Weights:
    """Random weights by the names that transformers has: packed as *choose* says, or fp32."""
    cpu = torch.device("cpu")
    model = Decoder(configure(Fields(config)), torch.float32, cpu, TorchOps(cpu))
    generator = torch.Generator().manual_seed(seed)
    found: Weights = {}
    for parameter in model.parameters():
        for name, rows in parameter.sources:
            shape = (rows, *parameter.shape[1:])
            kind = choose(name) if len(shape) == 2 else None
            if name in found:
                continue
            if kind is not None:
                size = 2.5 / shape[1] ** 0.5
                packed = random_packed(kind, *shape, seed=seed + len(found), size=size)
                found[name] = kind, packed
            elif len(shape) == 1:
                found[name] = None, torch.empty(shape).uniform_(0.4, 1.6, generator=generator)
            else:
                std = 1.5 / shape[1] ** 0.5
                found[name] = None, torch.empty(shape).normal_(std=std, generator=generator)
    return found


def plain(weights: Weights) -> dict[str, torch.Tensor]:
    """*weights* in fp32, unpacked by the format's own package."""
    return {
        name: value
        if kind is None
        else torch.from_numpy(
            np.array(gguf.dequantize(value.numpy(), gguf.GGMLQuantizationType(kind.gguf_id)))
        )
        for name, (kind, value) in weights.items()
    }


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    weights: Weights,
    *,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    per_file: int = 0,
    half: Callable[[str], torch.dtype] = lambda name: torch.float32,
) -> Path:
    """The model in a file at *path*, or in files of *per_file* tensors; the first one's path.

    *half* is the dtype of dense matrices. None in *metadata* removes a key.
    """
    arch = "llama" if config["model_type"] in ("llama", "mistral") else config["model_type"]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=per_file)
    put(writer, {**_keys(config, arch), **(metadata or {})})
    for name, (kind, value) in weights.items():
        ordered = _converted(name, value, config) if arch == "llama" else value
        if kind is None and value.dim() == 2:
            ordered = ordered.to(half(name))
        _add(writer, _gguf_name(name), ordered, kind)
    for name, value in (extra or {}).items():
        _add(writer, name, value, None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not per_file:
        return path
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _add(writer: Any, name: str, value: torch.Tensor, kind: QuantType | None) -> None:
    value = value.contiguous()
    if kind is not None:
        raw = gguf.GGMLQuantizationType(kind.gguf_id)
        writer.add_tensor(name, value.numpy(), raw_dtype=raw)
    elif value.dtype == torch.bfloat16:
        octets = value.view(torch.uint8).numpy()
        writer.add_tensor(name, octets, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, value.numpy())


def _keys(config: Mapping[str, Any], arch: str) -> dict[str, Any]:
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    named = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.freq_base": float(config["rope_theta"]),
    }
    if config.get("sliding_window"):
        named["attention.sliding_window"] = config["sliding_window"]
    return {f"{arch}.{key}": value for key, value in named.items()}


_PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        named = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
        stem = name.removesuffix(".weight")
        return f"{named.get(stem, 'output')}.weight"
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _converted(name: str, value: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Rows of queries and keys as the converter reorders them for its architecture "llama"."""
    for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if part in name:
            heads = config[key]
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            return halves.swapaxes(1, 2).reshape(value.shape)
    return value
