"""Grammars of tool calls against the parser that reads them, and the names of what they allow."""

from __future__ import annotations

import json
import random
from typing import Any

import attrs
import numpy as np
import pytest
from fakes import tokenizers

from cortex.errors import BadRequest
from cortex.text.grammar import source
from cortex.text.grammar.compiler import GrammarCompiler
from cortex.text.tools.formats import FORMATS
from cortex.text.tools.grammars import call_grammar
from cortex.text.tools.parser import CallFragment, ToolCallParser

TOKENIZER = tokenizers.byte_level()
EOS = TOKENIZER.eos_id
COMPILER = GrammarCompiler(TOKENIZER, [EOS])
HERMES = next(each for each in FORMATS if each.name == "hermes")


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [tool("get_weather", CITY), tool("now")]


def grammar(tools: list[Any], *, parallel: bool = False, special: Any = None) -> str:
    special = special or TOKENIZER.control.get
    return call_grammar(HERMES, tools, parallel=parallel, special=special)


def takes(lark: str, text: str) -> bool:
    matcher = COMPILER.compile(source.lark(lark, "tools")).matcher()
    try:
        for token in TOKENIZER.encode(text, special=True):
            if matcher.ended:
                return False
            matcher.accept(token)
        if not matcher.ended:
            matcher.accept(EOS)
    except Exception:
        return False
    return True


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_call_is_written_as_the_models_are_trained_to() -> None:
    one = grammar(TOOLS)
    assert takes(one, call("get_weather", '{"city": "Oslo"}'))
    assert takes(one, call("get_weather", '{"city":"Oslo","days":2}'))
    assert takes(one, call("now", "{}"))
    for wrong in (
        "Hello",
        call("other", "{}"),
        call("now", '{"a": 1}'),
        call("get_weather", "{}"),
        call("get_weather", '{"city": "Oslo", "days": 3}'),
        call("now", "{}") + " and more",
        "Well. " + call("now", "{}"),
        call("now", "{}").removesuffix("\n</tool_call>"),
    ):
        assert not takes(one, wrong), wrong


def test_parallel_calls_follow_each_other_on_lines_and_only_where_they_may() -> None:
    twice = call("now", "{}") + "\n" + call("get_weather", '{"city": ""}')
    assert takes(grammar(TOOLS, parallel=True), twice)
    assert takes(grammar(TOOLS, parallel=True), call("now", "{}"))
    assert not takes(grammar(TOOLS, parallel=True), twice + "\n")
    assert not takes(grammar(TOOLS), twice)


@pytest.mark.slow
def test_random_calls_come_out_of_the_parser_as_calls_with_their_arguments() -> None:
    compiled = COMPILER.compile(source.lark(grammar(TOOLS, parallel=True), "tools"))
    for seed in range(25):
        matcher, rng, text = compiled.matcher(), random.Random(seed), b""
        while not matcher.ended:
            row = np.zeros(-(-TOKENIZER.id_limit // 32), dtype=np.int32)
            matcher.fill_mask(row)
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")
            token = rng.choice(np.flatnonzero(bits).tolist())
            matcher.accept(token)
            if token != EOS:
                text += TOKENIZER.token_bytes(token)
        parser = ToolCallParser(HERMES, lambda: "id")
        parts = parser.feed(text.decode()) + parser.finish()
        names: list[str] = []
        arguments: dict[int, str] = {}
        for part in parts:
            if isinstance(part, CallFragment):
                names += [part.name] if part.name else []
                arguments[part.index] = arguments.get(part.index, "") + part.arguments
            else:
                assert not part.text.strip()
        assert len(names) == len(arguments) >= 1
        for name, written in zip(names, arguments.values(), strict=True):
            value = json.loads(written)
            if name == "now":
                assert value == {}
            else:
                assert {"city"} <= value.keys() <= {"city", "days"}
                assert len(value["city"]) <= 5


def test_markers_that_are_no_tokens_are_spelled() -> None:
    lark = grammar([tool("now")], special=lambda text: None)
    matcher = COMPILER.compile(source.lark(lark, "tools")).matcher()
    for token in TOKENIZER.encode_plain(call("now", "{}")):
        matcher.accept(token)
    assert matcher.ended


def test_what_cannot_be_enforced_is_left_to_the_model_unless_the_tool_is_strict() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    assert takes(grammar([tool("f", odd)]), call("f", '{"a": [1, 1]}'))
    with pytest.raises(BadRequest) as caught:
        takes(grammar([tool("f", odd, strict=True)]), call("f", '{"a": []}'))
    assert caught.value.param == "tools"


def test_arguments_are_an_object_whatever_the_schema_leaves_open() -> None:
    assert takes(grammar([tool("f", {})]), call("f", '{"x": 1}'))
    assert not takes(grammar([tool("f", {})]), call("f", "[1]"))


def test_schemas_of_tools_have_limits_too() -> None:
    with pytest.raises(BadRequest) as caught:
        source.lark(
            grammar([tool("f", {"properties": {"a": {"enum": list(range(9999))}}})]), "tools"
        )
    assert caught.value.error_code == "grammar_too_complex"


def test_a_format_whose_grammar_is_not_known_cannot_be_forced() -> None:
    with pytest.raises(BadRequest, match="forced") as caught:
        call_grammar(
            attrs.evolve(HERMES, name="elvish"), TOOLS, parallel=True, special=lambda text: None
        )
    assert caught.value.param == "tool_choice"
