"""Small real tokenizers, built with the `tokenizers` library: no model files are needed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Native

from cortex.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog answers.",
    'Tools are called with {"name": "get_weather", "arguments": {"city": "Paris"}} and more.',
    "system user assistant tool <> | im start end think call response true false null 0123456789",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 日本語 😀 émigré",
] * 4
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHOWN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>")


def _added(special: tuple[str, ...], shown: tuple[str, ...]) -> list[AddedToken]:
    tokens = [AddedToken(text, special=True, normalized=False) for text in special]
    return tokens + [AddedToken(text, special=False, normalized=False) for text in shown]


@cache
def byte_level_json() -> str:
    """Byte-level BPE with ChatML's markers, as Qwen's."""
    native = Native(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    native.train_from_iterator(CORPUS, trainer)
    native.add_tokens(_added(SPECIAL, SHOWN))
    return str(native.to_str())


@cache
def metaspace_json(*, strip: bool = True) -> str:
    """Unigram with metaspace and byte tokens, as SentencePiece models have; `<s>` as its BOS.

    ``strip``: decoded like Llama 2's (one leading space is dropped), else like Gemma's.
    """
    native = Native(models.Unigram())
    native.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    native.train_from_iterator(CORPUS, trainer)
    document = json.loads(native.to_str())
    pieces = document["model"]["vocab"]
    pieces += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    document["model"]["byte_fallback"] = True
    native = Native.from_str(json.dumps(document))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    native.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    native.add_tokens(_added(("[INST]", "[/INST]", "[TOOL_CALLS]"), ("[THINK]", "[/THINK]")))
    native.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", native.token_to_id("<s>"))]
    )
    return str(native.to_str())


def special_byte_level(*special: str, suffix: str | None = None) -> Tokenizer:
    """`byte_level` with more special tokens, and *suffix* put after each text."""
    native = Native.from_str(byte_level_json())
    native.add_tokens(_added(special, ()))
    if suffix is not None:
        native.post_processor = processors.TemplateProcessing(
            single=f"$A {suffix}", special_tokens=[(suffix, native.token_to_id(suffix))]
        )
    return Tokenizer(json.loads(native.to_str()), {"eos_token": "<|im_end|>"})


def byte_level(config: dict[str, Any] | None = None) -> Tokenizer:
    return Tokenizer(
        json.loads(byte_level_json()),
        {"eos_token": "<|im_end|>", "bos_token": None} | (config or {}),
    )


def with_tokens(tokens: Iterable[str]) -> Tokenizer:
    """`byte_level` with *tokens* as special ones besides its own."""
    document = json.loads(byte_level_json())
    added = document["added_tokens"]
    known = {token["content"] for token in added}
    first = max(token["id"] for token in added) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added += [
        {"id": first + n, "content": text, "special": True, **flags}
        for n, text in enumerate(sorted(set(tokens) - known))
    ]
    return Tokenizer(document, {"eos_token": "<|im_end|>", "bos_token": None})


def metaspace(config: dict[str, Any] | None = None, *, strip: bool = True) -> Tokenizer:
    return Tokenizer(
        json.loads(metaspace_json(strip=strip)),
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | (config or {}),
    )


def write(directory: Path, document: str, config: dict[str, Any], template: str | None) -> Path:
    """A checkpoint's text files, as `transformers` reads them too."""
    (directory / "tokenizer.json").write_text(document, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory
