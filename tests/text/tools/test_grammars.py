"""Grammars of tool calls against the parser that reads them, and the names of what they allow."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from fakes import tokenizers

from cortex.errors import BadRequest
from cortex.text.grammar import source
from cortex.text.grammar.compiler import Grammar, GrammarCompiler
from cortex.text.tokenizer import Tokenizer
from cortex.text.tools.formats import BY_NAME, COUNT, FORMATS, Arguments, ToolFormat
from cortex.text.tools.grammars import begins_with_token, call_grammar
from cortex.text.tools.offer import Offer
from cortex.text.tools.parser import CallFragment, Part, ToolCallParser

TOKENIZER = tokenizers.byte_level()
EOS = TOKENIZER.eos_id
COMPILER = GrammarCompiler(TOKENIZER, [EOS])
HERMES = BY_NAME["hermes"]


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
        parser = ToolCallParser(HERMES, Offer(), lambda: "id")
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


# Every format

MARKED = tokenizers.with_tokens({marker for row in FORMATS for marker in row.markers})
VOCABULARIES = {
    "tokens": (MARKED, GrammarCompiler(MARKED, [MARKED.eos_id])),
    "text": (TOKENIZER, GrammarCompiler(TOKENIZER, [EOS])),
}
PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"enum": [1, 2]},
        "unit": {"enum": ["C", "F"]},
        "dry": {"type": "boolean"},
        "near": {"$ref": "#/$defs/Near"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"Near": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
}
ALL_TOOLS = [tool("get_weather", PLACE), tool("now"), tool("any", {"type": "object"})]
NAMES = [row.name for row in FORMATS]


def written(row: ToolFormat, *calls: tuple[str, dict[str, Any]]) -> str:
    """*calls* (names and values) as a model of *row* is trained to write them."""
    way, pieces = row.spelling, []
    for name, values in calls:
        if way.arguments is Arguments.JSON:
            arguments = json.dumps(values, ensure_ascii=False)
        elif way.arguments is Arguments.PYTHON:
            arguments = ", ".join(f"{k}={_literal(v)}" for k, v in values.items())
        else:
            tags = way.tags
            assert tags is not None
            line = "\n" if tags.lines else ""
            value_open = "\n" + tags.value_open if tags.value_open else ""
            arguments = "".join(
                f"{tags.key_open}{k}{tags.key_end}{value_open}{line}"
                f"{v if isinstance(v, str) else json.dumps(v)}{line}{tags.value_end}\n"
                for k, v in values.items()
            )
        head = way.before_name + name + way.before_arguments.replace(COUNT, "0")
        pieces.append(head + arguments + way.after_arguments)
    return way.begin + way.between.join(pieces) + way.end


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def taken(row: ToolFormat, vocabulary: str, text: str, *, parallel: bool = True) -> bool:
    tokenizer, compiler = VOCABULARIES[vocabulary]
    lark = call_grammar(row, ALL_TOOLS, parallel=parallel, special=tokenizer.control.get)
    matcher = compiler.compile(source.lark(lark, "tools")).matcher()
    try:
        for token in tokenizer.encode(text, special=True):
            if matcher.ended:
                return False
            matcher.accept(token)
        if not matcher.ended:
            matcher.accept(tokenizer.eos_id)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_family_writes_is_what_its_grammar_takes(name: str, vocabulary: str) -> None:
    row = BY_NAME[name]
    whole = {"city": "Zü 日", "days": 2, "unit": "C", "dry": True, "near": [1, 2]}
    for calls in (
        [("now", {})],
        [("get_weather", {"city": ""})],
        [("get_weather", whole)],
        [("get_weather", {"city": "a", "near": []})],
        [("any", {"x": "y", "z": "1"})],
        [("any", {})],
    ):
        assert taken(row, vocabulary, written(row, *calls), parallel=False), calls
    two = written(row, ("now", {}), ("get_weather", {"city": "a", "dry": False}))
    assert taken(row, vocabulary, two)
    assert not taken(row, vocabulary, two, parallel=False)
    refused = [
        written(row, ("other", {})),
        written(row, ("now", {"a": 1})),
        written(row, ("get_weather", {})),
        written(row, ("get_weather", {"days": 1})),
        written(row, ("get_weather", {"city": "a", "days": 3})),
        written(row, ("get_weather", {"city": "a", "unit": "K"})),
        written(row, ("get_weather", {"city": "a", "near": [1, 2, 3]})),
        "Well. " + written(row, ("now", {})),
        written(row, ("now", {})) + " and more",
        "",
        "Hello",
    ]
    for text in refused:
        assert not taken(row, vocabulary, text), text


@pytest.mark.parametrize("name", NAMES)
def test_the_parser_reads_what_the_grammar_takes(name: str) -> None:
    row = BY_NAME[name]
    values = {"city": "a'\"\\", "days": 2, "dry": False, "near": [7]}
    parser = ToolCallParser(row, Offer.of(ALL_TOOLS), lambda: "id")
    parts = parser.feed(written(row, ("get_weather", values), ("now", {}))) + parser.finish()
    assert collected(parts) == [("get_weather", values), ("now", {})]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", NAMES)
def test_random_calls_come_out_of_the_parser_as_calls(name: str, vocabulary: str) -> None:
    row, (tokenizer, compiler) = BY_NAME[name], VOCABULARIES[vocabulary]
    tools = ALL_TOOLS[:2]
    lark = call_grammar(row, tools, parallel=True, special=tokenizer.control.get)
    compiled = compiler.compile(source.lark(lark, "tools"))
    texts = [random_text(compiled, tokenizer, random.Random(seed)) for seed in range(8)]
    whole = [text for text in texts if text is not None]
    assert whole
    for text in whole:
        parser = ToolCallParser(row, Offer.of(tools), lambda: "id")
        calls = collected(parser.feed(text) + parser.finish())
        assert calls
        for called, values in calls:
            if called == "now":
                assert values == {}
            else:
                assert {"city"} <= values.keys() <= PLACE["properties"].keys()
                assert isinstance(values["city"], str)
                assert values.get("days", 1) in (1, 2)
                assert isinstance(values.get("dry", True), bool)


def random_text(compiled: Grammar, tokenizer: Tokenizer, rng: random.Random) -> str | None:
    """What the grammar may lead to; None where it has led into text that is no UTF-8, or on and
    on."""
    matcher, text = compiled.matcher(), b""
    ends = [tokenizer.eos_id, *(i for t, i in tokenizer.control.items() if t.startswith("</"))]
    for _ in range(400):
        if matcher.ended:
            break
        row = np.zeros(-(-tokenizer.id_limit // 32), dtype=np.int32)
        matcher.fill_mask(row)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        likely = [token for token in allowed if token in ends] or allowed
        token = rng.choice(likely if rng.random() < 0.5 else allowed)
        matcher.accept(token)
        if token != tokenizer.eos_id:
            text += tokenizer.token_bytes(token)
    try:
        return text.decode() if matcher.ended else None
    except UnicodeDecodeError:
        return None


def collected(parts: list[Part]) -> list[tuple[str, Any]]:
    """The calls of *parts* with their values; there must be no other text than whitespace."""
    names: list[str] = []
    arguments: dict[int, str] = {}
    for part in parts:
        if isinstance(part, CallFragment):
            names += [part.name] if part.name else []
            arguments[part.index] = arguments.get(part.index, "") + part.arguments
        else:
            assert not part.text.strip()
    assert len(names) == len(arguments)
    return [(n, json.loads(a)) for n, a in zip(names, arguments.values(), strict=True)]


def test_only_calls_that_begin_with_a_token_can_be_told_from_text() -> None:
    told = {row.name for row in FORMATS if begins_with_token(row, MARKED.control.get)}
    assert told == set(NAMES) - {"pythonic", "llama3_json"}
    spelled = {row.name for row in FORMATS if begins_with_token(row, TOKENIZER.control.get)}
    assert spelled == {"hermes", "qwen3_coder", "glm45"}
