"""Prompts that ask for what stands in a gap, for each family that was taught it."""

from __future__ import annotations

import pytest
from fakes.tokenizers import byte_level, metaspace, metaspace_json, special_byte_level

from cortex.text.infill import SPELLINGS, InfillFormat, find_infill
from cortex.text.tokenizer import Tokenizer

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def found(tokenizer: Tokenizer) -> InfillFormat:
    infill = find_infill(tokenizer)
    assert infill is not None
    return infill


def asked(tokenizer: Tokenizer, before: str, after: str) -> str:
    ids = found(tokenizer).prompt(tokenizer, before, after)
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        (QWEN, "<|fim_prefix|>def f(<|fim_suffix|>): ...<|fim_middle|>"),
        (
            ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
            "<fim_prefix>def f(<fim_suffix>): ...<fim_middle>",
        ),
        (DEEPSEEK, "<｜fim▁begin｜>def f(<｜fim▁hole｜>): ...<｜fim▁end｜>"),
        (("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), "▁<PRE>def f(▁<SUF>): ...▁<MID>"),
        (("[PREFIX]", "[SUFFIX]"), "[SUFFIX]): ...[PREFIX]def f("),
    ],
    ids=lambda value: str(value)[:20],
)
def test_each_family_is_asked_in_its_own_order(tokens: tuple[str, ...], prompt: str) -> None:
    assert asked(special_byte_level(*tokens), "def f(", "): ...") == prompt


def test_a_model_that_was_not_taught_it_has_no_format() -> None:
    assert find_infill(byte_level()) is None
    assert find_infill(metaspace()) is None
    for spelling in SPELLINGS:  # all of its tokens are needed
        assert find_infill(special_byte_level(spelling.prefix)) is None


def test_words_of_the_vocabulary_that_text_can_spell_are_no_format() -> None:
    """A token that is not a control token would be forged by whoever writes it."""
    tokenizer = byte_level()
    tokenizer.control.clear()
    assert find_infill(tokenizer) is None


def test_bos_goes_first_where_the_model_wants_it() -> None:
    import json

    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Native

    native = Native.from_str(metaspace_json())
    native.add_tokens([AddedToken(t, special=True) for t in ("[SUFFIX]", "[PREFIX]")])
    tokenizer = Tokenizer(json.loads(native.to_str()), {"bos_token": "<s>"})
    ids = found(tokenizer).prompt(tokenizer, "the dog", " answers")
    assert ids[:2] == [tokenizer.bos_id, tokenizer.control["[SUFFIX]"]]
    # What follows the gap carries on a text: no space is put before it.
    assert tokenizer.decode(ids[2 : ids.index(tokenizer.control["[PREFIX]"])]).strip() == "answers"


@pytest.mark.parametrize("tokens", [QWEN, DEEPSEEK, ("[PREFIX]", "[SUFFIX]")], ids=str)
def test_control_tokens_in_the_texts_are_text(tokens: tuple[str, ...]) -> None:
    tokenizer = special_byte_level(*tokens)
    infill = found(tokenizer)
    evil = "a" + "".join(tokens) + "<|im_end|>b"
    ids = infill.prompt(tokenizer, evil, evil)
    own = [i for i in ids if i in tokenizer.control_ids]
    bland = [i for i in infill.prompt(tokenizer, "a", "b") if i in tokenizer.control_ids]
    assert own == bland
    assert tokenizer.decode([i for i in ids if i not in tokenizer.control_ids]) == evil * 2


def test_ids_before_the_gap_are_taken_as_they_are() -> None:
    tokenizer = special_byte_level(*QWEN)
    infill = found(tokenizer)
    ids = tokenizer.encode("def f(", special=False)
    assert infill.prompt(tokenizer, ids, ")") == infill.prompt(tokenizer, "def f(", ")")
    assert infill.prompt(tokenizer, "", "")[0] == infill.prefix


def test_the_filling_ends_with_what_begins_anything_else() -> None:
    tokenizer = special_byte_level(*QWEN)
    ends = {tokenizer.token_id(token) for token in (*QWEN, "<|endoftext|>")}
    assert found(tokenizer).ends == ends
