"""The same random Qwen3 weights as a safetensors folder and as GGUF files, for measuring.

The tokenizer knows bytes and made-up words that no text contains: a prompt has as many tokens as it
has bytes, whoever reads it. ``python tests/bench/random_model.py FOLDER SHAPE FORMAT...``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file

from cortex.engine.bench.shapes import SHAPES

CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
MERGE = ("w0", "w1")  # readers of GGUF want at least one; no text asks for it
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FORMATS = ("f32", "bf16", "q8_0", "q4_0")


def vocabulary(size: int) -> list[str]:
    """Byte-level characters, words, and the control tokens last."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{number}" for number in range(size - len(alphabet) - len(CONTROL) - 1)]
    return [*alphabet, *words, "".join(MERGE), *CONTROL]


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Values as bf16 holds them, so that every format but the quantised ones is the same model."""
    generator = torch.Generator().manual_seed(seed)
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    inner = config["intermediate_size"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).bfloat16()

    def norm(size: int) -> torch.Tensor:
        return torch.ones(size).bfloat16()

    made = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        made |= {
            p + "input_layernorm.weight": norm(hidden),
            p + "self_attn.q_proj.weight": matrix(heads * dim, hidden),
            p + "self_attn.k_proj.weight": matrix(kv_heads * dim, hidden),
            p + "self_attn.v_proj.weight": matrix(kv_heads * dim, hidden),
            p + "self_attn.o_proj.weight": matrix(hidden, heads * dim),
            p + "self_attn.q_norm.weight": norm(dim),
            p + "self_attn.k_norm.weight": norm(dim),
            p + "post_attention_layernorm.weight": norm(hidden),
            p + "mlp.gate_proj.weight": matrix(inner, hidden),
            p + "mlp.up_proj.weight": matrix(inner, hidden),
            p + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    return {**made, "model.norm.weight": norm(hidden)}


def write_folder(directory: Path, config: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    directory.mkdir(parents=True)
    words = vocabulary(config["vocab_size"])
    model = tokenizers.models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL[2],
        "pad_token": CONTROL[0],
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    end = config["vocab_size"] - 1
    full = {**config, "model_type": "qwen3", "hidden_act": "silu", "eos_token_id": end}
    full |= {"max_position_embeddings": 4096, "attention_bias": False}
    (directory / "config.json").write_text(json.dumps(full))
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})


NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


def write_gguf(
    path: Path, config: dict[str, Any], values: dict[str, torch.Tensor], form: str
) -> None:
    """All matrices in *form*, the embedding too; norms in fp32."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("random")
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    words = vocabulary(config["vocab_size"])
    control = len(words) - len(CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([3 if i >= control else 1 for i in range(len(words))])
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_eos_token_id(len(words) - 1)
    writer.add_pad_token_id(control)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    kind = gguf.GGMLQuantizationType[form.upper()]
    for name, value in values.items():
        wide = value.float().numpy()
        if value.ndim == 1 or form == "f32":
            writer.add_tensor(gguf_name(name), wide)
        else:
            packed = gguf.quants.quantize(wide, kind)
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(packed), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, shape: str, forms: tuple[str, ...]) -> dict[str, Path]:
    """Write what is missing in *folder*; the safetensors folder as "folder", files by format."""
    config = SHAPES[shape]
    paths = {"folder": folder / shape}
    paths |= {form: folder / f"{shape}-{form}.gguf" for form in forms}
    if all(path.exists() for path in paths.values()):
        return paths
    values = tensors(config)
    if not paths["folder"].exists():
        write_folder(paths["folder"], config, values)
    for form in forms:
        if not paths[form].exists():
            write_gguf(paths[form], config, values, form)
    return paths


if __name__ == "__main__":
    for what, path in make(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]) or FORMATS).items():
        print(what, path)
