"""Masks and ends against the language they stand for, tokenizer by tokenizer."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from fakes import tokenizers

from cortex.errors import BadRequest, InternalError
from cortex.text.grammar import compiler as module
from cortex.text.grammar import source
from cortex.text.grammar.compiler import GrammarCompiler, Matcher
from cortex.text.grammar.source import Source
from cortex.text.tokenizer import Tokenizer

BYTES = tokenizers.byte_level()
PIECES = tokenizers.metaspace()


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(BYTES, [BYTES.eos_id])


def allowed(matcher: Matcher, tokenizer: Tokenizer = BYTES, extra: int = 0) -> set[int]:
    """The ids that may come next, by a row that is wide enough and *extra* words wider."""
    row = np.full(-(-tokenizer.id_limit // 32) + extra, -1, dtype=np.int32)
    matcher.fill_mask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def walk(matcher: Matcher, seed: int, tokenizer: Tokenizer, ends: Iterable[int]) -> str:
    """A random text that the masks allow, up to its end."""
    rng = random.Random(seed)
    spelled = b""
    for _ in range(2000):
        if matcher.ended:
            break
        token = rng.choice(sorted(allowed(matcher, tokenizer)))
        matcher.accept(token)
        if token in ends:
            break
        spelled += tokenizer.token_bytes(token)
    else:
        raise AssertionError("it does not end")
    return spelled.decode()


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@pytest.mark.parametrize(
    "pattern", ["[a-c]{1,3}", "(the|quick|brown)( fox)?", "[0-9]{1,3}é?x", "a*b", "日本?"]
)
def test_a_mask_is_every_token_that_can_go_on(tokenizer: Tokenizer, pattern: str) -> None:
    """The oracle asks of each token whether text that begins with it can match."""
    texts = {
        "[a-c]{1,3}": {a + b + c for a in "abc" for b in ("", *"abc") for c in ("", *"abc")},
        "(the|quick|brown)( fox)?": {
            w + f for w in ("the", "quick", "brown") for f in ("", " fox")
        },
        "[0-9]{1,3}é?x": {f"{n}{e}x" for n in range(1000) for e in ("", "é")}
        | {f"{n:03}{e}x" for n in range(1000) for e in ("", "é")}
        | {f"{n:02}{e}x" for n in range(100) for e in ("", "é")},
        "a*b": {"a" * n + "b" for n in range(40)},
        "日本?": {"日", "日本"},
    }[pattern]
    language = {text.encode() for text in texts}
    grammars = GrammarCompiler(tokenizer, [tokenizer.eos_id])
    matcher = grammars.compile(source.regex(pattern, "p")).matcher()
    so_far, rng = b"", random.Random(pattern)
    while not matcher.ended:
        rest = {text[len(so_far) :] for text in language if text.startswith(so_far)}
        expected = {
            i
            for i in range(tokenizer.id_limit)
            if (spelled := tokenizer.token_bytes(i))
            and i not in tokenizer.control_ids | tokenizer.special_ids
            and any(text.startswith(spelled) for text in rest)
        }
        if b"" in rest:
            expected.add(tokenizer.eos_id)
        found = allowed(matcher, tokenizer)
        if len({text[:1] for text in rest}) == 1 and b"" not in rest:
            # What must come is spelled as the tokenizer spells it.
            assert found <= expected
            assert found
        else:
            assert found == expected
        token = rng.choice(sorted(found))
        matcher.accept(token)
        if token == tokenizer.eos_id:
            break
        so_far += tokenizer.token_bytes(token)
    assert so_far in language


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_fifty_walks_through_a_schema_are_json_of_that_schema(tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a b", "c", None, 3]},
            "ratio": {"type": "number", "minimum": 0, "maximum": 1},
            "day": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]?$"},
            "pairs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": {"$ref": "#/$defs/pair"},
            },
        },
        "required": ["kind", "day", "code", "pairs"],
        "additionalProperties": False,
        "$defs": {
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "boolean"}, {"type": "integer", "multipleOf": 5}],
                "items": False,
                "minItems": 2,
            }
        },
    }
    grammars = GrammarCompiler(tokenizer, [tokenizer.eos_id])
    grammar = grammars.compile(source.json_schema(schema, "p"))
    for seed in range(50):
        text = walk(grammar.matcher(), seed, tokenizer, [tokenizer.eos_id])
        value = json.loads(text)
        assert value["kind"] in ("a b", "c", None, 3)
        assert 0 <= value.get("ratio", 0) <= 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", value["day"])
        assert re.fullmatch(r"[A-Z]{2}[0-9]?", value["code"])
        assert 1 <= len(value["pairs"]) <= 2
        for flag, number in value["pairs"]:
            assert type(flag) is bool
            assert number % 5 == 0
        assert list(value) == [key for key in schema["properties"] if key in value]


def test_two_matchers_of_a_grammar_do_not_know_of_each_other(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(source.regex("ab|ba", "p"))
    one, two = grammar.matcher(), grammar.matcher()
    (a,), (b,) = BYTES.encode_plain("a"), BYTES.encode_plain("b")
    one.accept(a)
    assert allowed(one) == {b}
    assert {a, b} <= allowed(two)
    two.accept(b)
    assert allowed(two) == {a}
    one.accept(b)
    assert one.ended
    assert not two.ended
    assert allowed(grammar.matcher()) >= {a, b}


def test_control_tokens_are_no_text(compiler: GrammarCompiler) -> None:
    anything = compiler.compile(source.regex("(.|\\n)*", "p")).matcher()
    assert not allowed(anything) & (BYTES.control_ids - {BYTES.eos_id})
    assert BYTES.eos_id in allowed(anything)
    spelled = compiler.compile(source.choice(["<think>"], "p")).matcher()
    assert BYTES.control["<think>"] not in allowed(spelled)
    named = compiler.compile(source.lark(f"start: <[{BYTES.control['<think>']}]>", "p")).matcher()
    assert allowed(named) == {BYTES.control["<think>"]}


def test_rows_wider_than_the_vocabulary_forbid_the_rest_and_narrower_ones_do_not_matter(
    compiler: GrammarCompiler,
) -> None:
    grammar = compiler.compile(source.regex("[a-c]+", "p"))
    assert allowed(grammar.matcher(), extra=3) == allowed(grammar.matcher())
    row = np.zeros(4, dtype=np.int32)
    grammar.matcher().fill_mask(row)
    few = {i for i in range(128) if row[i // 32] >> i % 32 & 1}
    assert few == {i for i in allowed(grammar.matcher()) if i < 128}


def test_a_model_without_a_token_to_end_with_ends_by_its_grammar() -> None:
    grammars = GrammarCompiler(BYTES, [])
    for seed in range(10):
        matcher = grammars.compile(source.regex("[a-c]{1,3}x", "p")).matcher()
        assert re.fullmatch("[a-c]{1,3}x", walk(matcher, seed, BYTES, []))
    assert GrammarCompiler(BYTES, [10**6]).compile(source.json_object("p")).endless


def test_every_end_of_the_model_ends_it() -> None:
    ends = {BYTES.control["<|endoftext|>"], BYTES.control["<|im_end|>"]}
    matcher = GrammarCompiler(BYTES, ends).compile(source.regex("a*", "p")).matcher()
    assert ends <= allowed(matcher)
    matcher.accept(min(ends))
    assert matcher.ended


def test_a_token_that_is_not_allowed_is_an_error(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(source.regex("a", "p")).matcher()
    (wrong,) = BYTES.encode_plain("b")
    with pytest.raises(InternalError, match="does not allow"):
        matcher.accept(wrong)
    with pytest.raises(InternalError, match="has failed"):
        allowed(matcher)


def test_a_matcher_that_runs_out_of_its_limits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would offer the end instead of an error."""
    few = module.llguidance.LLParserLimits(step_lexer_fuel=3000, verbose_errors=False)
    monkeypatch.setattr(module, "_LIMITS", few)
    grammars = GrammarCompiler(BYTES, [BYTES.eos_id])
    matcher = grammars.compile(source.regex(r"(\w{3,60}\d{1,30}){5,60}\W", "p")).matcher()

    def go_on() -> None:
        for _ in range(200):
            matcher.accept(min(allowed(matcher)))

    with pytest.raises(InternalError, match="has failed"):
        go_on()


HOSTILE: list[tuple[Any, str]] = [
    ({"type": "strin"}, "invalid_schema"),
    ({"type": 5}, "invalid_schema"),
    ({"properties": []}, "invalid_schema"),
    ({"$ref": "#"}, "invalid_schema"),
    ({"$ref": "https://example.org/x"}, "invalid_schema"),
    ({"$ref": "#/$defs/none"}, "invalid_schema"),
    ({"allOf": [{"$ref": "#"}]}, "invalid_schema"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "invalid_schema"),
    ({"type": "string", "format": "no-such"}, "invalid_schema"),
    ({"type": "string", "pattern": "^(?=a)b"}, "invalid_schema"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "invalid_schema"),
    ({"not": {"type": "string"}}, "unsupported_schema"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "unsupported_schema"),
]


@pytest.mark.parametrize(("schema", "code"), HOSTILE, ids=lambda value: str(value)[:40])
def test_schemas_that_cannot_be_enforced_are_refused(
    compiler: GrammarCompiler, schema: Any, code: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        compiler.compile(source.json_schema(schema, "response_format"))
    assert (caught.value.param, caught.value.error_code) == ("response_format", code)
    assert "\n" not in caught.value.message
    assert "guidance" not in caught.value.message


def doubling(levels: int) -> dict[str, Any]:
    """References that come to 2**levels schemas when written out, all different."""
    defs: dict[str, Any] = {"a0": {"type": "object", "properties": {"z": {"type": "integer"}}}}
    for i in range(1, levels + 1):
        below = {"$ref": f"#/$defs/a{i - 1}"}
        defs[f"a{i}"] = {
            "properties": {
                "x": {"allOf": [below, {"properties": {f"q{i}": {}}}]},
                "y": {"allOf": [below, {"properties": {f"r{i}": {}}}]},
            }
        }
    return {"$defs": defs, "$ref": f"#/$defs/a{levels}"}


@pytest.mark.parametrize("levels", [16, 30, 100])
def test_references_that_explode_are_refused(compiler: GrammarCompiler, levels: int) -> None:
    with pytest.raises(BadRequest) as caught:
        compiler.compile(source.json_schema(doubling(levels), "p"))
    assert caught.value.error_code == "grammar_too_complex"


def test_references_that_repeat_are_not(compiler: GrammarCompiler) -> None:
    defs: dict[str, Any] = {"a0": {"type": "integer"}}
    for i in range(1, 40):
        below = {"$ref": f"#/$defs/a{i - 1}"}
        defs[f"a{i}"] = {"type": "object", "properties": {"x": below, "y": below}}
    compiler.compile(source.json_schema({"$defs": defs, "$ref": "#/$defs/a39"}, "p"))


def test_of_a_combination_the_part_at_fault_is_named(compiler: GrammarCompiler) -> None:
    good, bad = source.json_object("response_format"), source.lark("start: (", "tools")
    with pytest.raises(BadRequest) as caught:
        compiler.compile(source.either(good, bad))
    assert caught.value.param == "tools"
    bad = source.json_schema({"type": "strin"}, "response_format")
    with pytest.raises(BadRequest) as caught:
        compiler.compile(source.either(bad, source.lark('start: "a"', "tools")))
    assert (caught.value.param, caught.value.error_code) == ("response_format", "invalid_schema")


def test_a_vocabulary_that_cannot_spell_is_refused() -> None:
    document = json.loads(tokenizers.byte_level_json())
    document["model"]["vocab"] = {
        piece: i for piece, i in document["model"]["vocab"].items() if piece != "{"
    }
    document["model"]["merges"] = [
        merge for merge in document["model"]["merges"] if "{" not in "".join(merge)
    ]
    lacking = Tokenizer(document, {})
    with pytest.raises(BadRequest, match="constrained"):
        GrammarCompiler(lacking, []).compile(source.json_object("p"))


def test_what_was_compiled_is_kept_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    grammars = GrammarCompiler(BYTES, [BYTES.eos_id])
    first = grammars.compile(source.regex("a", "p"))
    grammars.compile(source.regex("b", "p"))
    assert grammars.compile(source.regex("a", "p")) is first
    grammars.compile(source.regex("c", "p"))
    assert grammars.compile(source.regex("a", "p")) is first
    assert len(grammars._kept) == 2


def test_threads_compile_side_by_side() -> None:
    grammars = GrammarCompiler(BYTES, [BYTES.eos_id])
    wishes: list[Source] = [source.regex(f"a{{{n}}}x", "p") for n in range(1, 9)]
    found: dict[int, bool] = {}

    def work(number: int) -> None:
        matcher = grammars.compile(wishes[number]).matcher()
        text = walk(matcher, number, BYTES, [BYTES.eos_id])
        found[number] = text == "a" * (number + 1) + "x"

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == dict.fromkeys(range(8), True)


def test_forced_text_is_spelled_as_the_tokenizer_spells_it(compiler: GrammarCompiler) -> None:
    text = '{"name": "get_weather", "arguments": '
    matcher = compiler.compile(source.choice([text + "x"], "p")).matcher()
    for token in BYTES.encode_plain(text + "x"):
        assert allowed(matcher) == {token}
        matcher.accept(token)
    assert matcher.ended


def test_a_spelling_that_is_not_exact_is_not_used() -> None:
    """A normaliser that rewrites text, and a tokenizer that fails."""

    class Odd(Tokenizer):
        answer: Any = None

        def encode_plain(self, text: str) -> list[int]:
            if self.answer is None:
                raise BadRequest("broken")
            return super().encode_plain(self.answer)

    odd = Odd(json.loads(tokenizers.byte_level_json()), {"eos_token": "<|im_end|>"})
    for answer in (None, "something else"):
        odd.answer = answer
        matcher = GrammarCompiler(odd, [odd.eos_id]).compile(source.choice(["é weather"], "p"))
        assert walk(matcher.matcher(), 0, odd, [odd.eos_id]) == "é weather"
