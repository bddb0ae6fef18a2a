"""Our logits from GGUF files against transformers' on the unpacked weights, in fp32.

The unpacking is the format's own package's, so that reader, names, order of rows, packed products
and embeddings are all tested by it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.gguf_models import Weights, config_of, plain, weights_of, write_gguf
from fakes.logits import captured_logits

from cortex.engine.engine import Engine
from cortex.engine.load.checkpoint import open_engine
from cortex.engine.quant.types import BY_NAME, Q4_K, Q5_0, Q6_K, Q8_0, TYPES, QuantType

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

PROMPT = torch.randint(0, 131, (45,), generator=torch.Generator().manual_seed(1)).tolist()
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def logits_of(engine: Engine, prompt: list[int]) -> torch.Tensor:
    return captured_logits(engine, [prompt])[0][: len(prompt)]


def theirs(config: dict[str, Any], weights: Weights) -> Any:
    kind = config["architectures"][0].removesuffix("ForCausalLM")
    members = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**members)
        ).eval()
        missing, unexpected = model.load_state_dict(plain(weights), strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    assert not unexpected
    return model


def assert_alike(path: Path, config: dict[str, Any], weights: Weights) -> None:
    engine = open_engine(path, device="cpu", dtype="float32", max_batch=2, max_batch_tokens=37)
    ours = logits_of(engine, PROMPT)
    with torch.inference_mode():
        wanted = theirs(config, weights)(torch.tensor([PROMPT])).logits[0]
    assert (ours - wanted).norm() / wanted.norm() < 1e-4
    engine.close()


def everything(kind: QuantType) -> Callable[[str], QuantType | None]:
    return lambda name: kind


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_format(kind: QuantType, tmp_path: Path):
    config = config_of("qwen3")
    weights = weights_of(config, everything(kind))
    assert_alike(write_gguf(tmp_path / "a.gguf", config, weights), config, weights)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-no-head-dim": ("llama", {"head_dim": None, "num_attention_heads": 8}),
    "mistral-window": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen2-tied": ("qwen2", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
}


def mixed(name: str) -> QuantType | None:
    """As files called Q4_K_M are: values, outputs and the head in more bits than the rest."""
    if "v_proj" in name or "lm_head" in name:
        return Q6_K
    return Q5_0 if "down_proj" in name or "k_proj" in name else Q4_K


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_in_mixed_formats(name: str, tmp_path: Path):
    model_type, changes = CASES[name]
    config = config_of(model_type, **changes)
    weights = weights_of(config, mixed)
    assert_alike(write_gguf(tmp_path / "a.gguf", config, weights), config, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_dense_files(model_type: str, dtype: torch.dtype, tmp_path: Path):
    config = config_of(model_type)
    weights = weights_of(config, lambda name: None)
    path = write_gguf(tmp_path / "a.gguf", config, weights, half=lambda name: dtype)
    rounded = {
        n: (None, v.to(dtype).float() if v.dim() == 2 else v) for n, (_, v) in weights.items()
    }
    assert_alike(path, config, rounded)


def test_packed_weights_beside_dense_ones_in_parts(tmp_path: Path):
    def choose(name: str) -> QuantType | None:
        return None if "q_proj" in name or "embed" in name or "down" in name else Q8_0

    config = config_of("llama")
    weights = weights_of(config, choose)
    path = write_gguf(tmp_path / "a.gguf", config, weights, per_file=4)
    assert path.name == "a-00001-of-00006.gguf"
    assert_alike(path, config, weights)
    assert_alike(tmp_path / "a-00003-of-00006.gguf", config, weights)


def test_the_factors_of_llama_3_are_a_tensor(tmp_path: Path):
    """As the converter computes them from the config; transformers computes from the config."""
    config = config_of("llama", rope_theta=10000.0)
    weights = weights_of(config, mixed)
    frequencies = 10000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    wavelengths = 2 * torch.pi / frequencies
    smooth = (32 / wavelengths - 1.0) / (4.0 - 1.0)
    blended = 1 / ((1 - smooth) / 8.0 + smooth)
    factors = torch.where(wavelengths < 32 / 4.0, 1.0, blended)
    factors = torch.where(wavelengths > 32 / 1.0, 8.0, factors)
    extra = {"rope_freqs.weight": factors.float()}
    path = write_gguf(tmp_path / "a.gguf", config, weights, extra=extra)
    assert_alike(path, {**config, "rope_parameters": LLAMA3, "rope_theta": None}, weights)


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"scaling.type": "linear", "scaling.factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        ({"scale_linear": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        (
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_scaled_positions(metadata: dict[str, Any], scaling: dict[str, Any], tmp_path: Path):
    config = config_of("qwen3")
    weights = weights_of(config, mixed)
    keys = {f"qwen3.rope.{key}": value for key, value in metadata.items()}
    path = write_gguf(tmp_path / "a.gguf", config, weights, metadata=keys)
    scaling = {**scaling, "rope_theta": 10000.0}
    assert_alike(path, {**config, "rope_parameters": scaling, "rope_theta": None}, weights)


def test_bf16_is_near(tmp_path: Path):
    config = config_of("llama")
    weights = weights_of(config, everything(BY_NAME["q5_k"]))
    path = write_gguf(tmp_path / "a.gguf", config, weights)
    engine = open_engine(path, device="cpu", dtype="bfloat16", max_batch_tokens=37)
    ours = logits_of(engine, PROMPT)
    with torch.inference_mode():
        wanted = theirs(config, weights)(torch.tensor([PROMPT])).logits[0]
    assert (ours - wanted).norm() / wanted.norm() < 4e-2
    engine.close()
