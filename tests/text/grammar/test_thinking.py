"""The grammar holds what follows the thinking; the thinking is free but for the model's ends."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import tokenizers

from cortex.text.grammar import source
from cortex.text.grammar.compiler import GrammarCompiler
from cortex.text.grammar.thinking import BREAKS, AfterThinking, Phase, ThinkingTokens
from cortex.text.reasoning import find_markers

TOKENIZER = tokenizers.byte_level()
OPEN, CLOSE = TOKENIZER.control["<think>"], TOKENIZER.control["</think>"]
EOS = TOKENIZER.eos_id
OTHER_END = TOKENIZER.control["<|endoftext|>"]
ALL = frozenset(range(TOKENIZER.id_limit))


@pytest.fixture(scope="module")
def tokens() -> ThinkingTokens:
    markers = find_markers(TOKENIZER)
    assert markers is not None
    return ThinkingTokens.of(TOKENIZER, markers, [EOS, OTHER_END, 10**6])


def one(text: str) -> int:
    (token,) = TOKENIZER.encode_plain(text)
    return token


def gate(tokens: ThinkingTokens, phase: Phase) -> AfterThinking:
    grammar = GrammarCompiler(TOKENIZER, [EOS, OTHER_END]).compile(source.regex("[ab]x?", "p"))
    return AfterThinking(grammar.matcher(), tokens, phase)


def allowed(constraint: AfterThinking, words: int = 20) -> set[int]:
    row = np.full(words, -1, dtype=np.int32)
    constraint.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def test_the_line_breaks_are_single_tokens(tokens: ThinkingTokens) -> None:
    assert one("\n") in tokens.breaks
    assert all(set(TOKENIZER.token_bytes(i)) <= set(b"\r\n") for i in tokens.breaks)


def test_within_thinking_anything_may_come_but_the_ends(tokens: ThinkingTokens) -> None:
    held = gate(tokens, Phase.THINKING)
    assert not held.ended
    for token in (one("z"), EOS + 1, one("a"), OPEN):
        assert allowed(held) == ALL - {EOS, OTHER_END}
        held.accept(token)
    held.accept(CLOSE)
    assert held.phase is Phase.CLOSED
    assert not held.ended


def test_after_the_closer_line_breaks_then_the_answer(tokens: ThinkingTokens) -> None:
    held = gate(tokens, Phase.THINKING)
    held.accept(CLOSE)
    answer = {one("a"), one("b")}
    for _ in range(BREAKS):
        assert allowed(held) == answer | tokens.breaks
        held.accept(one("\n"))
    assert allowed(held) == answer
    held.accept(one("a"))
    assert allowed(held) == {one("x"), EOS, OTHER_END}
    held.accept(one("x"))
    assert held.ended


def test_the_answer_may_follow_the_closer_at_once(tokens: ThinkingTokens) -> None:
    held = gate(tokens, Phase.THINKING)
    held.accept(CLOSE)
    held.accept(one("b"))
    assert held.phase is Phase.ANSWER
    assert allowed(held) == {one("x"), EOS, OTHER_END}


def test_a_model_may_open_a_block_itself_but_first_and_once(tokens: ThinkingTokens) -> None:
    answer = {one("a"), one("b")}
    held = gate(tokens, Phase.BEFORE)
    assert allowed(held) == answer | {OPEN}
    held.accept(OPEN)
    assert allowed(held) == ALL - {EOS, OTHER_END}
    held.accept(CLOSE)
    assert OPEN not in allowed(held)
    held = gate(tokens, Phase.BEFORE)
    held.accept(one("a"))
    assert OPEN not in allowed(held)
    assert allowed(gate(tokens, Phase.ANSWER)) == answer


@pytest.mark.parametrize("words", [1, 14, 15, 16, 40])
@pytest.mark.parametrize("phase", Phase)
def test_rows_of_any_width_are_filled_whole(
    tokens: ThinkingTokens, words: int, phase: Phase
) -> None:
    wide = allowed(gate(tokens, phase), 60)
    assert allowed(gate(tokens, phase), words) == {i for i in wide if i < 32 * words}
    assert max(wide) < TOKENIZER.id_limit


@pytest.mark.parametrize(
    ("prompt", "phase"),
    [
        ("<|im_start|>assistant\n", Phase.BEFORE),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Phase.ANSWER),
        ("<|im_start|>assistant\n</think>", Phase.ANSWER),
        ("<think>x</think>Hello<|im_end|>\n<|im_start|>assistant\n", Phase.BEFORE),
        ("", Phase.BEFORE),
    ],
)
def test_where_a_completion_begins(tokens: ThinkingTokens, prompt: str, phase: Phase) -> None:
    assert tokens.phase_after(TOKENIZER, TOKENIZER.encode(prompt, special=True)) is phase
