"""Our logits against transformers', on the same files, in fp32.

Every architecture with each part that changes its arithmetic; the checkpoint goes through
save_pretrained and our loader, so that names, fusing and sharding are tested with it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.logits import captured_logits

from cortex.engine.load.checkpoint import open_engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

COMMON = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2},
    ),
    "qwen2-yarn-scaled": (
        "Qwen2",
        {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}},
    ),
    "llama": ("Llama", {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    ),
    "llama-head-dim": ("Llama", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": 11, "head_dim": 16}),
    "mistral-window-blocks": ("Mistral", {"sliding_window": 33}),
}


def reference(name: str) -> Any:
    """A random model with weights large enough that every part of it shows in the logits."""
    architecture, changes = CASES[name]
    config = getattr(transformers, f"{architecture}Config")(**{**COMMON, **changes})
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)
            else:
                parameter.uniform_(0.4, 1.6)
    return model


def save(model: Any, directory: Path, shard: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, max_shard_size=shard)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 131, (n,), generator=generator).tolist() for n in (1, 20, 50, 101)]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path):
    model = reference(name)
    shard = "20KB" if list(CASES).index(name) % 2 else "1GB"
    save(model, tmp_path, shard)
    sharded = (tmp_path / "model.safetensors.index.json").is_file()
    assert sharded == (shard == "20KB")
    engine = open_engine(tmp_path, device="cpu", dtype="float32", max_batch=4, max_batch_tokens=37)
    for prompt, ours in zip(prompts(), captured_logits(engine, prompts()), strict=True):
        tokens = list(prompt)
        for _ in range(4):  # the tokens that were drawn are computed too, but for the last
            with torch.inference_mode():
                theirs = model(torch.tensor([tokens])).logits[0]
            tokens.append(int(theirs[-1].argmax()))
        with torch.inference_mode():
            theirs = model(torch.tensor([tokens])).logits[0]
        assert ours.shape == theirs.shape
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 1e-5
    engine.close()


def test_an_old_style_config_means_the_same(tmp_path: Path):
    """``rope_theta``, ``rope_scaling`` and ``torch_dtype``, as before transformers 5."""
    import json

    model = reference("llama-llama3")
    save(model, tmp_path, "1GB")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
    engine = open_engine(tmp_path, device="cpu", dtype="float32")
    prompt = prompts()[2]
    ours = captured_logits(engine, [prompt])[0][: len(prompt)]
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0]
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "mistral-window"])
def test_bf16_logits_are_near(name: str, tmp_path: Path):
    model = reference(name)
    save(model.bfloat16(), tmp_path, "1GB")
    engine = open_engine(tmp_path, device="cpu", dtype="bfloat16", max_batch_tokens=37)
    prompt = prompts()[3]
    ours = captured_logits(engine, [prompt])[0][: len(prompt)]
    with torch.inference_mode():
        theirs = model.float()(torch.tensor([prompt])).logits[0]
    assert (ours - theirs).norm() / theirs.norm() < 4e-2
