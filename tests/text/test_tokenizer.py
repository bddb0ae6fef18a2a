"""The tokenizer: text cannot write control tokens, bytes are exact, bad files are told."""

from __future__ import annotations

import json

import pytest
from fakes.tokenizers import (
    SHOWN,
    SPECIAL,
    byte_level,
    byte_level_json,
    metaspace,
    special_byte_level,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import CheckpointError
from cortex.text.tokenizer import GUARD, Tokenizer
from cortex.text.vocabulary import any_of, is_control

BYTE_LEVEL = byte_level()
METASPACE = metaspace()
PIECES = st.one_of(st.sampled_from([*SPECIAL, *SHOWN, "<s>", "[INST]", GUARD]), st.text(max_size=5))


@given(st.lists(PIECES, max_size=6).map("".join))
def test_text_never_becomes_a_control_token(text):
    for tokenizer in (BYTE_LEVEL, METASPACE):
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text, special=False))
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode_plain(text))


@given(st.lists(PIECES, max_size=6).map("".join))
def test_byte_level_text_comes_back(text):
    ids = BYTE_LEVEL.encode(text, special=False)
    plain = text.replace(GUARD, "") if BYTE_LEVEL.control_pattern.search(text) else text
    assert BYTE_LEVEL.decode(ids) == plain
    assert b"".join(map(BYTE_LEVEL.token_bytes, ids)).decode() == plain


def test_special_text_becomes_control_tokens_where_asked():
    ids = BYTE_LEVEL.encode("<|im_start|>user<think>", special=True)
    assert ids[0] == BYTE_LEVEL.token_id("<|im_start|>")
    assert ids[-1] == BYTE_LEVEL.token_id("<think>")


def test_text_without_control_tokens_is_encoded_alike_either_way():
    for tokenizer in (BYTE_LEVEL, METASPACE):
        text = "The quick brown fox"
        assert tokenizer.encode(text, special=False) == tokenizer.encode(text, special=True)


def test_decoding_leaves_out_special_tokens_only():
    ids = BYTE_LEVEL.encode("<|im_start|><think>a", special=True)
    assert BYTE_LEVEL.decode(ids) == "<think>a"
    assert BYTE_LEVEL.decode(ids, skip_special=False) == "<|im_start|><think>a"
    assert BYTE_LEVEL.is_special(ids[0])
    assert not BYTE_LEVEL.is_special(ids[1])


def test_bytes_of_byte_and_metaspace_tokens():
    assert METASPACE.token_bytes(METASPACE.token_id("<0x0A>")) == b"\n"
    spaced = next(i for i in range(METASPACE.vocab_size) if METASPACE._hf.id_to_token(i)[:1] == "▁")
    assert METASPACE.token_bytes(spaced).startswith(b" ")
    assert METASPACE.token_bytes(METASPACE.token_id("[INST]")) == b"[INST]"


@pytest.mark.parametrize("token", [-1, 10**6, 2**40])
def test_ids_beyond_the_vocabulary_are_nothing(token):
    assert BYTE_LEVEL.token_bytes(token) == b""
    assert BYTE_LEVEL.decode([token]) == ""


def test_a_metaspace_text_after_others_gets_no_space_of_its_own():
    first = METASPACE.encode("quick", special=False)
    assert METASPACE.token_bytes(first[0]).startswith(b" ")
    assert b"".join(map(METASPACE.token_bytes, METASPACE.encode_plain("quick"))) == b"quick"


def test_a_raw_prompt_begins_with_bos_where_the_checkpoint_wants_it():
    bos = METASPACE.token_id("<s>")
    assert METASPACE.encode_completion("fox")[0] == bos
    assert METASPACE.encode_completion("<s>fox").count(bos) == 1
    assert metaspace({"add_bos_token": False}).encode_completion("fox")[0] != bos
    assert BYTE_LEVEL.encode_completion("fox") == BYTE_LEVEL.encode("fox", special=True)


def test_all_eos_ids_count():
    own = BYTE_LEVEL.token_id("<|im_end|>")
    assert BYTE_LEVEL.eos_ids({"eos_token_id": [7, 8]}, {"eos_token_id": 9}) == {7, 8, 9, own}
    assert BYTE_LEVEL.eos_ids(None, {"eos_token_id": None}) == {own}


@pytest.mark.parametrize(
    ("content", "special", "control"),
    [
        ("<|im_end|>", True, True),
        ("anything", True, True),
        ("</tool_call>", False, True),
        ("<｜tool▁sep｜>", False, True),
        ("[TOOL_CALLS]", False, True),
        ("<table>", False, False),
        ("</s>", False, True),
        ("\n\n", False, False),
        ("hello", False, False),
    ],
)
def test_what_counts_as_control(content, special, control):
    assert is_control(content, special) is control


@given(st.lists(st.text("ab<|>", max_size=5), max_size=6), st.text("ab<|>", max_size=12))
def test_the_trie_finds_the_longest_word_at_each_place(words, text):
    import re

    plain = "|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True))) or "(?!)"
    assert re.findall(any_of(words), text) == re.findall(plain, text)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model": 1}',
        '{"decoder": {"type": "ByteLevel"}, "added_tokens": 3}',
        '{"decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": -1}]}',
        '{"decoder": {"type": "WordPiece"}}',
        "\x00\x01",
    ],
)
def test_a_corrupt_file_is_told(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_directory(tmp_path)


@given(st.data())
def test_a_damaged_file_is_told_or_read(tmp_path_factory, data):
    document = byte_level_json()
    at = data.draw(st.integers(0, len(document) - 1))
    damaged = (
        document[:at] + data.draw(st.sampled_from(["", "x", '"', "{", "-"])) + document[at + 1 :]
    )
    path = tmp_path_factory.mktemp("damaged")
    write(path, damaged, {}, None)
    try:
        tokenizer = Tokenizer.from_directory(path)
    except CheckpointError:
        return
    assert tokenizer.vocab_size > 0


def test_a_vocabulary_that_spells_a_control_token_cannot_be_made_to_give_it():
    document = json.loads(byte_level_json())
    # As in vocabularies that take a whole word where they have it (Llama 3's).
    document["model"]["ignore_merges"] = True
    document["model"]["vocab"]["dog"] = len(document["model"]["vocab"])
    for token in document["added_tokens"]:
        token["id"] += 1
    document["added_tokens"].insert(
        0,
        {
            **document["added_tokens"][0],
            "id": document["model"]["vocab"]["dog"],
            "content": "dog",
        },
    )
    tokenizer = Tokenizer(document, {})
    ids = tokenizer.encode("dog", special=False)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "dog"


def test_a_document_stands_between_what_the_post_processor_puts_around_it(tmp_path):
    plain = BYTE_LEVEL.encode("a document", special=False)
    assert BYTE_LEVEL.encode_document("a document") == plain
    ended = special_byte_level(suffix="<|endoftext|>")
    assert ended.encode_document("a document") == [*plain, ended.token_id("<|endoftext|>")]
    assert ended.encode_document("") == [ended.token_id("<|endoftext|>")]
    (bos, *rest) = METASPACE.encode_document("the dog")
    assert bos == METASPACE.bos_id
    assert rest == METASPACE.encode("the dog", special=False)
    wanting = metaspace({"add_eos_token": True})
    assert wanting.encode_document("the dog") == [bos, *rest, wanting.eos_id]


def test_a_documents_ids_are_those_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = special_byte_level(suffix="<|endoftext|>")
    write(tmp_path, tokenizer._hf.to_str(), {"eos_token": "<|im_end|>"}, None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("What is cortex?", "日本 😀", " "):
        assert tokenizer.encode_document(text) == theirs(text)["input_ids"]


def test_control_tokens_in_a_document_are_text():
    ids = BYTE_LEVEL.encode_document("a<|im_end|><|endoftext|>")
    assert BYTE_LEVEL.control_ids.isdisjoint(ids)
