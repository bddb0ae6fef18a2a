"""Tokenizers out of GGUF metadata: the ids of the tokenizer that the metadata came from."""

from __future__ import annotations

import itertools
import json
from array import array
from pathlib import Path
from typing import Any

import gguf
import pytest
from fakes.gguf_tokenizers import (
    NORMAL,
    byte_level,
    byte_level_json,
    put,
    sentencepiece,
)
from tokenizers import Tokenizer as Native

from cortex.errors import CheckpointError, UnsupportedModel
from cortex.text.gguf_splits import SPLITS
from cortex.text.gguf_tokenizer import read_tokenizer
from cortex.text.template import ChatTemplate
from cortex.text.template_files import read_templates
from cortex.text.tokenizer import Tokenizer

TEXTS = (
    "The quick brown fox's dog  answers: 12345 times.\n\n",
    " leading, and trailing \t\r\n ",
    "Zwölf Boxkämpfer; E\u0301cole, 日本語 😀 émigré",
    'def f(x):\n    return {"a": [1, 2, x**3]}\n',
    "<|im_start|>user\nHi<think>so</think><|im_end|>\n<tool_call>",
    "a",
    "",
)


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    made = read_tokenizer(metadata)
    return Tokenizer(made.document, made.config)


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_ids_are_those_of_the_original(pre: str):
    ours = tokenizer_of(byte_level(pre))
    theirs = Native.from_str(byte_level_json(pre))
    for text in TEXTS:
        assert ours.encode(text, special=True) == theirs.encode(text).ids
        ids = theirs.encode(text).ids
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, False)
    assert ours.vocab_size == theirs.get_vocab_size() + 3  # the padding
    assert ours.special_ids == {
        ours.token_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    }


def test_plain_text_cannot_forge_a_control_token():
    ours = tokenizer_of(byte_level("qwen2"))
    ids = ours.encode("<|im_end|><think>", special=False)
    assert ours.control_ids.isdisjoint(ids)
    assert ours.decode(ids) == "<|im_end|><think>"
    assert b"".join(ours.token_bytes(i) for i in ids) == b"<|im_end|><think>"


def test_the_metadata_of_a_written_file_is_the_same(tmp_path: Path):
    from cortex.engine.load.gguf_file import read_metadata

    metadata = byte_level("llama-bpe", **{"tokenizer.chat_template": "{{ messages }}"})
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    put(writer, metadata)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_tokenizer(read_metadata(tmp_path / "a.gguf")) == read_tokenizer(metadata)


def by_scores(metadata: dict[str, Any], text: str, *, prefix: bool) -> list[int]:
    """SentencePiece's way, step by step: join the neighbours whose union scores highest."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    scores = metadata["tokenizer.ggml.scores"]
    ids = {t: i for i, t in enumerate(tokens) if kinds[i] == NORMAL}
    parts = list((("▁" if prefix else "") + text).replace(" ", "▁"))
    while True:
        unions = [
            (-scores[ids[a + b]], i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in ids
        ]
        if not unions:
            break
        i = min(unions)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    found = []
    for part in parts:
        octets = [tokens.index(f"<0x{octet:02X}>") for octet in part.encode()]
        found += [ids[part]] if part in ids else octets
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_its_scores(prefix: bool):
    metadata = sentencepiece(**{"tokenizer.ggml.add_space_prefix": prefix})
    ours = tokenizer_of(metadata)
    for text in (
        "The quick brown fox",
        "the  dogs answers, émigré 日 \u0000\n",
        " x",
        "<0x41>",
        "ω",
    ):
        ids = ours.encode(text, special=True)
        assert ids == by_scores(metadata, text, prefix=prefix)
        assert ours.decode(ids) == text
    assert ours.encode("[INST]", special=True) == [ours.token_id("[INST]")]


def test_sentencepiece_adds_bos_unless_the_file_says_no():
    assert tokenizer_of(sentencepiece()).encode_completion("a")[0] == 1
    silent = tokenizer_of(sentencepiece(**{"tokenizer.ggml.add_bos_token": False}))
    assert silent.encode_completion("a")[0] != 1


def test_byte_level_adds_bos_where_its_family_does():
    changes = {"tokenizer.ggml.bos_token_id": 10, "tokenizer.ggml.add_bos_token": None}

    def first(pre: str) -> int:
        return tokenizer_of(byte_level(pre, **changes)).encode_completion("a")[0]

    assert first("llama-bpe") == first("tekken") == 10
    assert first("qwen2") != 10
    changes["tokenizer.ggml.add_bos_token"] = True
    assert first("qwen2") == 10
    changes["tokenizer.ggml.add_bos_token"] = False
    assert first("llama-bpe") != 10


def test_a_document_ends_with_eos_where_the_file_says_so():
    silent = tokenizer_of(byte_level("qwen2"))
    ids = silent.encode_document("a b")
    ends = tokenizer_of(byte_level("qwen2", **{"tokenizer.ggml.add_eos_token": True}))
    assert ends.encode_document("a b") == [*ids, silent.eos_id]


def test_all_that_ends_a_turn_is_an_end():
    metadata = byte_level(
        "qwen2", **{"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": 4}
    )
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")}
    assert read_tokenizer(metadata).eos_ids == {3, 4} | named
    metadata["tokenizer.ggml.eom_token_id"] = 5
    metadata["tokenizer.ggml.token_type"] = [NORMAL] * len(tokens)  # words, not control tokens
    assert read_tokenizer(metadata).eos_ids == {3, 4, 5}


def test_tokens_have_their_names():
    metadata = byte_level("qwen2")
    assert read_tokenizer(metadata).config == {"eos_token": "<|im_end|>", "add_bos_token": False}
    assert tokenizer_of(metadata).eos_id == metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer_of(sentencepiece()).special_tokens() == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip


def test_templates_come_from_the_metadata(tmp_path: Path):
    one = {"tokenizer.chat_template": "{{ messages[0].content }}!"}
    ours = tokenizer_of(byte_level("qwen2", **one))
    template = ChatTemplate.find(tmp_path, ours)
    assert template.render([{"role": "user", "content": "Hi"}]) == "Hi!"
    two = {**one, "tokenizer.chat_template.tool_use": "tools!"}
    named = read_templates(tmp_path, tokenizer_of(byte_level("qwen2", **two)).config)
    assert named == {"default": "{{ messages[0].content }}!", "tool_use": "tools!"}
    only = {"tokenizer.chat_template.tool_use": "tools!"}
    assert read_templates(tmp_path, tokenizer_of(byte_level("qwen2", **only)).config) == {}


def test_numbers_may_be_arrays():
    metadata = sentencepiece()
    packed = dict(metadata)
    packed["tokenizer.ggml.scores"] = array("f", metadata["tokenizer.ggml.scores"])
    packed["tokenizer.ggml.token_type"] = array("i", metadata["tokenizer.ggml.token_type"])
    assert json.dumps(read_tokenizer(packed).document) == json.dumps(
        read_tokenizer(metadata).document
    )


def test_a_token_without_a_spelling_keeps_its_place():
    metadata = byte_level("qwen2")
    metadata["tokenizer.ggml.tokens"][-1] = ""
    ours = tokenizer_of(metadata)
    assert ours.token_id(f"[EMPTY_{len(metadata['tokenizer.ggml.tokens']) - 1}]") is not None


PLACES = "tokenizer.ggml."
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model is missing"),
    "model a number": ({"model": 3}, "model is no string"),
    "no tokens": ({"tokens": None}, "tokens is missing"),
    "tokens none": ({"tokens": []}, "tokens has 0 entries"),
    "tokens numbers": ({"tokens": [1, 2]}, "tokens is no list of strings"),
    "tokens twice": ({"tokens": ["a", "b", "a"]}, "has one token twice"),
    "kinds too few": ({"token_type": [1, 1]}, "token_type is no list of"),
    "kinds strings": ({"token_type": "normal"}, "token_type is no list of"),
    "no merges": ({"merges": None}, "merges is missing"),
    "a merge of one": ({"merges": ["ab"]}, "has 'ab', which is no pair"),
    "a merge of nothing": ({"merges": ["a "]}, "which is no pair"),
    "eos beyond": ({"eos_token_id": 1 << 31}, "eos_token_id is 2147483648, which is no token"),
    "eos negative": ({"eos_token_id": -1}, "which is no token"),
    "eos a string": ({"eos_token_id": "2"}, "which is no token"),
    "eot beyond": ({"eot_token_id": 100_000}, "eot_token_id is 100000"),
    "add_bos a number": ({"add_bos_token": 1}, "neither true nor false"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata_is_told_apart_and_told(case: str):
    changes, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(byte_level("qwen2", **{PLACES + k: v for k, v in changes.items()}))


def test_bad_templates_and_scores_are_told():
    with pytest.raises(CheckpointError, match="'default' is no string"):
        read_tokenizer(byte_level("qwen2", **{"tokenizer.chat_template": 3}))
    with pytest.raises(CheckpointError, match="scores is missing"):
        read_tokenizer(sentencepiece(**{PLACES + "scores": None}))
    with pytest.raises(CheckpointError, match="scores is no list of"):
        read_tokenizer(sentencepiece(**{PLACES + "scores": [0.0]}))


def test_a_merge_of_unknown_tokens_is_no_tokenizer():
    with pytest.raises(CheckpointError, match="the tokenizer failed"):
        tokenizer_of(byte_level("qwen2", **{PLACES + "merges": ["no such"]}))


def test_an_unknown_way_of_cutting_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModel, match=r"cut as 'mystery'.*known: .*llama-bpe.*qwen2"):
        read_tokenizer(byte_level("qwen2", **{PLACES + "pre": "mystery"}))
    with pytest.raises(UnsupportedModel, match="kind 'bert' are not supported; known: gpt2, llama"):
        read_tokenizer(byte_level("qwen2", **{PLACES + "model": "bert"}))


def test_a_file_that_does_not_say_how_it_cuts_is_the_default():
    silent = read_tokenizer(byte_level("default", **{PLACES + "pre": None}))
    assert silent == read_tokenizer(byte_level("default"))
