"""A model's text side out of its files, or out of a GGUF file's metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import trio
from fakes.gguf_tokenizers import byte_level, byte_level_json, put
from fakes.tokenizers import byte_level_json as other_json

from cortex.engine.request import Pooling
from cortex.errors import CheckpointError, UnsupportedModel
from cortex.neuron.model_text import TextShelf
from cortex.neuron.read_text import read_text

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}]


def write(path: Path, pre: str = "qwen2", **changes: Any) -> Path:
    metadata = byte_level(
        "qwen2", **{"tokenizer.ggml.pre": pre, "tokenizer.chat_template": TEMPLATE, **changes}
    )
    writer = gguf.GGUFWriter(path, "qwen2")
    put(writer, metadata)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_gguf_file_has_it_all(tmp_path: Path) -> None:
    sampling = {
        "general.sampling.temp": 0.95,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.8,
        "general.sampling.penalty_repeat": 1.05,
    }
    text = read_text(write(tmp_path / "m.gguf", **sampling))
    assert text.template is not None
    assert text.template.render(CHAT) == "<|im_start|>Hi<|im_end|>"
    ids = {text.tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert text.defaults.eos_ids == ids
    assert text.markers is not None
    defaults = text.defaults
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.95, 20, 0.8)
    assert (defaults.repetition_penalty, defaults.min_p, defaults.do_sample) == (1.05, None, None)


def test_files_beside_it_go_before(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "mystery_pre", **{"general.sampling.temp": 0.5})
    with pytest.raises(UnsupportedModel, match=r"put the model's tokenizer\.json beside the file"):
        read_text(path)
    (tmp_path / "tokenizer.json").write_text(byte_level_json("qwen2"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    generation = {"temperature": 0.7, "eos_token_id": [5]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    text = read_text(path)
    assert text.tokenizer.encode("The quick", special=True)
    assert text.template is not None
    assert text.template.render(CHAT) == "Hi!"
    assert text.defaults.temperature == 0.7
    assert 5 in text.defaults.eos_ids
    assert len(text.defaults.eos_ids) == 3


def test_an_embedding_model_says_how_it_pools(tmp_path: Path) -> None:
    assert not read_text(write(tmp_path / "a.gguf")).embedding.stated
    recipe = read_text(write(tmp_path / "b.gguf", **{"qwen2.pooling_type": 1})).embedding
    assert (recipe.stated, recipe.pooling, recipe.normalize) == (True, Pooling.MEAN, True)
    recipe = read_text(write(tmp_path / "c.gguf", **{"qwen2.pooling_type": 3})).embedding
    assert recipe.pooling is Pooling.LAST
    recipe = read_text(write(tmp_path / "d.gguf", **{"qwen2.pooling_type": 2})).embedding
    assert recipe.refusal == "pooling of type 2 is not supported"
    assert not read_text(write(tmp_path / "e.gguf", **{"qwen2.pooling_type": 0})).embedding.stated
    with pytest.raises(CheckpointError, match=r"qwen2\.pooling_type is last, not a number"):
        read_text(write(tmp_path / "f.gguf", **{"qwen2.pooling_type": "last"}))


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    tokens = byte_level("qwen2")["tokenizer.ggml.tokens"][:300]
    fewer = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * 300}
    path = write(tmp_path / "m.gguf", **fewer, **{"tokenizer.ggml.eos_token_id": 3})
    (tmp_path / "tokenizer.json").write_text(other_json())
    with pytest.raises(CheckpointError, match=r"m\.gguf only 300: they are of different models"):
        read_text(path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "warm"])
def test_defaults_out_of_range_are_told(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "m.gguf", **{"general.sampling.temp": value})
    with pytest.raises(CheckpointError, match="temperature"):
        read_text(path)


async def test_it_is_read_again_when_the_file_or_what_is_beside_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    shelf = TextShelf(read_text)
    first = await shelf.text(path)
    assert await shelf.text(path) is first
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    second = await shelf.text(path)
    assert second is not first
    await trio.to_thread.run_sync(os.utime, path, (1, 1))
    assert await shelf.text(path) is not second
