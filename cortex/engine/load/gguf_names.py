"""GGUF's names of tensors as transformers has them. No torch."""

from __future__ import annotations

import re

ROPE_FACTORS = "rope_freqs.weight"

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    ROPE_FACTORS: ROPE_FACTORS,  # which transformers derives from the config
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)")
_INTERLEAVED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)")


def decoder_name(name: str) -> str:
    """What a decoder calls the tensor *name* of a GGUF file; unknown ones keep their name."""
    found = _LAYER.fullmatch(name)
    if found is None or found[2] not in _OF_LAYER:
        return _WHOLE.get(name, name)
    return f"model.layers.{found[1]}.{_OF_LAYER[found[2]]}.{found[3]}"


def projection(name: str) -> str | None:
    """ "q" or "k" where *name* (a decoder's) projects to queries or keys, else None."""
    found = _INTERLEAVED.fullmatch(name)
    return found[1] if found else None
