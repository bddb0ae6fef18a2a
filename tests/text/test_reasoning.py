"""Reasoning markers: the pair that a vocabulary has as single tokens."""

from __future__ import annotations

import json

import pytest
from fakes.tokenizers import byte_level_json

from cortex.text.deltas import ContentDelta, OutputParser, ReasoningDelta
from cortex.text.reasoning import PAIRS, find_markers
from cortex.text.tokenizer import Tokenizer


def vocabulary(*tokens: str) -> Tokenizer:
    """A tokenizer whose only reasoning markers are *tokens*, as special ones."""
    document = json.loads(byte_level_json())
    document["added_tokens"] = [
        token for token in document["added_tokens"] if "think" not in token["content"]
    ]
    first = max(token["id"] for token in document["added_tokens"]) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] += [
        {"id": first + n, "content": text, "special": True, **flags}
        for n, text in enumerate(tokens)
    ]
    return Tokenizer(document, {})


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_every_pair_tells_thinking_from_the_answer(pair: tuple[str, str]) -> None:
    tokenizer = vocabulary(*pair)
    markers = find_markers(tokenizer)
    assert markers is not None
    said = f"{pair[0]}\nwell\n{pair[1]}\n\nHi"
    parser = OutputParser(tokenizer, reasoning=markers)
    deltas = parser.feed(*tokenizer.encode(said, special=True)) + parser.finish()
    thought = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    answer = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    assert (thought, answer) == ("well", "Hi")


def test_half_a_pair_is_none() -> None:
    assert find_markers(vocabulary("<think>")) is None
    assert find_markers(vocabulary("<think>", "</reasoning>")) is None
    assert find_markers(vocabulary()) is None
