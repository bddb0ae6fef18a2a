"""GGUF metadata of small real tokenizers, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from fakes.tokenizers import CORPUS, SHOWN, SPECIAL
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Native

from cortex.text.gguf_splits import SPLITS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@cache
def byte_level_json(pre: str) -> str:
    """A tokenizer.json that cuts words as *pre* does, trained on a small corpus."""
    split = SPLITS[pre]
    native = Native(models.BPE(ignore_merges=split.ignore_merges))
    if split.nfc:
        native.normalizer = normalizers.NFC()
    native.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    native.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    native.train_from_iterator(CORPUS, trainer)
    native.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    native.add_tokens([AddedToken(text, special=False, normalized=False) for text in SHOWN])
    return str(native.to_str())


def byte_level(pre: str, **changes: Any) -> dict[str, Any]:
    """Metadata of that tokenizer, with padding at the end; None removes a key."""
    document = json.loads(byte_level_json(pre))
    vocabulary = document["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [NORMAL] * len(tokens)
    for token in document["added_tokens"]:
        tokens.append(token["content"])
        kinds.append(CONTROL if token["special"] else USER_DEFINED)
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(3)]
    kinds += [UNUSED] * 3
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
    }
    return {k: v for k, v in {**metadata, **changes}.items() if v is not None}


@cache
def _pieces() -> tuple[str, ...]:
    """Metaspace pieces, the most frequent unions first."""
    native = Native(models.BPE())
    native.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    native.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    vocabulary = native.get_vocab()
    return tuple(sorted(vocabulary, key=vocabulary.get))


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Metadata like Llama 2's: scores and no merges, byte tokens, a control token at the end."""
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    pieces = [piece for piece in _pieces() if piece not in special]
    tokens = [*special, *octets, *pieces, "[INST]", "<think>"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), CONTROL]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces) + 2)],
        "tokenizer.ggml.token_type": [*kinds, USER_DEFINED],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return {k: v for k, v in {**metadata, **changes}.items() if v is not None}


def put(writer: Any, metadata: dict[str, Any]) -> None:
    """Write *metadata* with a `gguf.GGUFWriter`."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
