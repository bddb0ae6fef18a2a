"""What ends thinking is what the model's own template writes there."""

from __future__ import annotations

import pytest
from fakes.chat_templates import LLAMA3, QWEN3
from fakes.tokenizers import byte_level, metaspace

from cortex.text.closing import Closing, closing_of
from cortex.text.reasoning import find_markers
from cortex.text.template import ChatTemplate
from cortex.text.tokenizer import Tokenizer

BYTE_LEVEL, METASPACE = byte_level(), metaspace()
TALK = "{% for m in messages %}{{ m.role }}: "
PLAIN = TALK + "{{ m.content }}\n{% endfor %}"
TIGHT = TALK + "[THINK]{{ m.reasoning_content }}[/THINK]{{ m.content }}\n{% endfor %}"
PROSE = TALK + "{{ m.reasoning_content }}" + "</think> or so " * 9 + "{{ m.content }}{% endfor %}"
TWICE = TALK + "{{ m.reasoning_content }}</think></think>{{ m.content }}{% endfor %}"
REFUSES = "{{ raise_exception('never') }}"


def closing(tokenizer: Tokenizer, source: str | None) -> Closing:
    markers = find_markers(tokenizer)
    assert markers is not None
    template = None if source is None else ChatTemplate({"default": source}, tokenizer)
    return closing_of(tokenizer, markers, template)


def text(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


@pytest.mark.parametrize("source", [QWEN3, LLAMA3, PLAIN, PROSE, TWICE, REFUSES, None])
def test_a_line_break_and_an_empty_line_stand_around_the_closer(source: str | None) -> None:
    found = closing(BYTE_LEVEL, source)
    assert text(BYTE_LEVEL, found.line) == "\n"
    assert text(BYTE_LEVEL, found.rest) == "</think>\n\n"
    assert found.rest[0] == BYTE_LEVEL.token_id("</think>")


def test_a_template_without_lines_gets_none() -> None:
    found = closing(METASPACE, TIGHT)
    assert found.line == ()
    assert found.rest == (METASPACE.token_id("[/THINK]"),)


def test_metaspace_lines_are_lines_and_no_spaces() -> None:
    found = closing(METASPACE, None)
    assert text(METASPACE, found.line + found.rest) == "\n[/THINK]\n\n"


def test_thinking_that_ends_with_a_line_break_gets_no_second_one() -> None:
    found = closing(BYTE_LEVEL, QWEN3)
    word, line = BYTE_LEVEL.encode("x", special=False)[0], found.line[-1]
    assert found.after(word) == found.line + found.rest
    assert found.after(line) == found.rest
