"""The demonstration model as a GGUF file: it says what it says as safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from fakes.gguf_models import Weights, write_gguf
from fakes.requests import ask, drain, tokens_of
from safetensors.torch import load_file

from cortex.engine.load.checkpoint import open_engine
from cortex.engine.quant.types import Q4_0, Q8_0, QuantType
from cortex.neuron.read_text import read_text
from cortex.neuron.sources import DEMO_DIRECTORY

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def metadata() -> dict[str, Any]:
    document = json.loads((DEMO_DIRECTORY / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    added = document["added_tokens"]
    tokens = [*sorted(vocabulary, key=vocabulary.get), *(token["content"] for token in added)]
    kinds = [1] * len(vocabulary) + [3 if token["special"] else 4 for token in added]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "cortex-demo",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": (DEMO_DIRECTORY / "chat_template.jinja").read_text(),
    }


def packed(kind: QuantType | None) -> Weights:
    def one(value: torch.Tensor) -> tuple[QuantType | None, torch.Tensor]:
        if kind is None or value.dim() == 1:
            return None, value.float()
        raw = gguf.GGMLQuantizationType(kind.gguf_id)
        return kind, torch.from_numpy(gguf.quantize(value.float().numpy(), raw))

    return {
        name: one(value) for name, value in load_file(DEMO_DIRECTORY / "model.safetensors").items()
    }


def answer(place: Path) -> str:
    text = read_text(place)
    assert text.template is not None
    prompt = text.template.encode_chat(QUESTION)
    engine = open_engine(place, device="cpu", dtype="float32", context=256)
    engine.add(ask("r", prompt, max_tokens=9))
    said = text.tokenizer.decode(tokens_of(drain(engine)["r"]))
    engine.close()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, Q8_0, Q4_0], ids=["bf16", "q8_0", "q4_0"])
def test_the_demonstration_model_says_the_same(tmp_path: Path, kind: QuantType | None) -> None:
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    path = write_gguf(
        tmp_path / "demo.gguf",
        config,
        packed(kind),
        metadata=metadata(),
        half=lambda name: torch.bfloat16,
    )
    # It cuts words in a way of its own, which metadata has no name for.
    shutil.copy(DEMO_DIRECTORY / "tokenizer.json", tmp_path)
    assert answer(path) == answer(DEMO_DIRECTORY) == "The capital of France is Paris."
