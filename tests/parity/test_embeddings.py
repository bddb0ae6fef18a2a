"""Our embeddings against transformers' hidden states, pooled the obvious way, in fp32."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.requests import drain, embed

from cortex.engine.load.checkpoint import open_engine
from cortex.engine.request import Pooling

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
CASES: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "Llama": {},
    "Mistral": {"sliding_window": 11, "head_dim": 16},
}


def saved(architecture: str, directory: Path) -> Any:
    config = getattr(transformers, f"{architecture}Config")(**COMMON, **CASES[architecture])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
        model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("architecture", CASES)
def test_embeddings_are_those_of_transformers(architecture: str, pooling: Pooling, tmp_path: Path):
    model = saved(architecture, tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 131, (n,), generator=generator).tolist() for n in (1, 20, 50, 101)]
    engine = open_engine(tmp_path, device="cpu", dtype="float32", max_batch=4, max_batch_tokens=37)
    for i, prompt in enumerate(prompts):
        engine.add(embed(str(i), prompt, pooling))
    events = drain(engine)
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():
            states = model.model(torch.tensor([prompt])).last_hidden_state[0]
        theirs = states[-1] if pooling is Pooling.LAST else states.mean(0)
        ours = torch.from_numpy(events[str(i)][0].vector)
        assert (ours - theirs).norm() / theirs.norm() < 1e-5
    engine.close()
