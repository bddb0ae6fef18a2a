"""What models write, and what a client is to be told of it: text, and calls with raw arguments."""

from __future__ import annotations

from typing import Any

import attrs

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {
                    "q": {"type": "string"},
                    "n": {"type": "integer"},
                    "x": {"type": "number"},
                    "deep": {"type": "boolean"},
                    "by": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "where": {"$ref": "#/$defs/Place"},
                },
                "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "get-it_2", "parameters": {"type": "object"}}},
]


@attrs.frozen
class Case:
    """``text`` is what the model writes. ``cut``: it was at its limit, not at its end."""

    text: str
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    cut: bool = False


def case(text: str, content: str = "", *calls: tuple[str, str], cut: bool = False) -> Case:
    return Case(text, content, calls, cut)


def as_text(text: str) -> Case:
    """No call: all of it is text."""
    return Case(text, text)


TRICKY = '{"q": "a \\"b\\" } </tool_call> \\\\", "n": [1, {"é": null}]}'
UNICODE = '{"q": "Zürich 日本 😀 \\u00e9\\n"}'


def wrap(arguments: str, name: str = "find") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


HERMES = [
    case(wrap(TRICKY), "", ("find", TRICKY)),
    case(wrap(UNICODE), "", ("find", UNICODE)),
    case(wrap("{}", "now"), "", ("now", "{}")),
    case('<tool_call>{"name": "now"}</tool_call>', "", ("now", "{}")),
    case('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", ("now", "{}")),
    case('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", ("f", '{"a": 1}')),
    case('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", ("f", '{"a": 1}')),
    case(
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", ("f", '{"a": 1}')
    ),
    case(f"a {wrap('{}')}\n{wrap(TRICKY)} b", "a \n b", ("find", "{}"), ("find", TRICKY)),
    case(
        '<tool_call>\n{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}\n</tool_call>',
        "",
        ("f", "{}"),
        ("g", "{}"),
    ),
    case(
        '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>',
        "",
        ("f", "{}"),
        ("g", "{}"),
    ),
    case('<tool_call>{"name": "f", "arguments": {}}}</tool_call>!', "!", ("f", "{}")),
    case('<tool_call>{"name": "f", "arguments": {}}} so', "} so", ("f", "{}")),
    case('<tool_call>{"name": "f", "arguments": {}} {oh', " {oh", ("f", "{}")),
    case('<tool_call>{"name": "f", "arguments": {"a": "b', "", ("f", '{"a": "b'), cut=True),
    case('<tool_call>{"name": "f", "arguments": {"a": "b', "", ("f", '{"a": "b')),
    case(f"<tool_<tool_call>{wrap('{}')}", "<tool_<tool_call>", ("find", "{}")),
    case(
        "<tool_call>\n<function=find>\n<parameter=q>\nhi\n</parameter>\n</function>\n</tool_call>",
        "",
        ("find", '{"q": "hi"}'),
    ),
    as_text("x <tool_call>{no} </tool_call> y"),
    as_text('<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    as_text('<tool_call>{"name": "f", "arg'),
    as_text("<tool_call></tool_call>"),
    as_text("no call < at all <tool_cal"),
    as_text('{"name": "find", "arguments": {}}'),
]


def xml(*pairs: tuple[str, str], name: str = "find", wrapped: bool = True) -> str:
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs)
    call = f"<function={name}>\n{body}</function>"
    return f"<tool_call>\n{call}\n</tool_call>" if wrapped else call


QWEN3_CODER = [
    case(xml(("q", "hi")), "", ("find", '{"q": "hi"}')),
    case(xml(name="now"), "", ("now", "{}")),
    case(xml(("q", 'a "b"\n\tc\\d')), "", ("find", '{"q": "a \\"b\\"\\n\\tc\\\\d"}')),
    case(xml(("q", "Zürich 日本 😀")), "", ("find", '{"q": "Zürich 日本 😀"}')),
    case(xml(("q", "5"), ("n", "5")), "", ("find", '{"q": "5", "n": 5}')),
    case(xml(("n", "many"), ("n", "2.0")), "", ("find", '{"n": "many", "n": 2}')),
    case(xml(("x", "1.50"), ("deep", "True")), "", ("find", '{"x": 1.50, "deep": true}')),
    case(xml(("by", "null"), ("by", "true")), "", ("find", '{"by": null, "by": "true"}')),
    case(xml(("tags", '["a", "b"]')), "", ("find", '{"tags": ["a", "b"]}')),
    case(xml(("tags", "['a', True]")), "", ("find", '{"tags": ["a", true]}')),
    case(xml(("where", '{"city": {"x": [1]}}')), "", ("find", '{"where": {"city": {"x": [1]}}}')),
    case(xml(("z", "[1]"), ("y", "NaN")), "", ("find", '{"z": [1], "y": "NaN"}')),
    case(xml(("q", ""), ("q", "\n\n")), "", ("find", '{"q": "", "q": "\\n\\n"}')),
    case(
        xml(("q", "a </parameter> b </tool_call>\n</parameter>\nc")),
        "",
        ("find", '{"q": "a </parameter> b </tool_call>\\n</parameter>\\nc"}'),
    ),
    case(
        f"So:\n{xml(name='now')}\n{xml(('q', 'a'))}\nDone",
        "So:\n\n\nDone",
        ("now", "{}"),
        ("find", '{"q": "a"}'),
    ),
    case(xml(("q", "a"), wrapped=False), "", ("find", '{"q": "a"}')),
    case(
        "<tool_call><function=find><parameter=q>a b</parameter></function></tool_call>",
        "",
        ("find", '{"q": "a b"}'),
    ),
    case(
        "<tool_call>\n<function=now>\n</function>\n"
        "<function=find>\n<parameter=q>\na\n</parameter>\n</function>\n</tool_call>",
        "",
        ("now", "{}"),
        ("find", '{"q": "a"}'),
    ),
    case(wrap('{"q": 1}'), "", ("find", '{"q": 1}')),
    case(f"<tool_call>\n{xml(('q', 'a'), wrapped=False)}", "", ("find", '{"q": "a"}')),
    case("<tool_call><function=find><parameter=q>a</parameter>", "", ("find", '{"q": "a"}')),
    case(
        "<tool_call><function=find><parameter=q>a</parameter>",
        "",
        ("find", '{"q": "a'),
        cut=True,
    ),
    case("<tool_call><function=find>\n<parameter=q>\na b", "", ("find", '{"q": "a b')),
    case("<tool_call><function=find>\n<parameter=n>\n12", "", ("find", '{"n": ')),
    as_text("<tool_call>\n<function=find>\nhello\n</function>\n</tool_call>"),
    as_text("<tool_call>\n<function=>\n</function>\n</tool_call>"),
    as_text("<tool_call>\n<func>\n</tool_call>"),
    as_text("<tool_call>\n<function=fi"),
    as_text("see <function=x but no"),
]

LLAMA3 = [
    case('{"name": "find", "parameters": {"q": "a"}}', "", ("find", '{"q": "a"}')),
    case('<|python_tag|>{"name": "now", "parameters": {}}', "", ("now", "{}")),
    case('\n {"name": "now", "parameters": {}}\n', "\n ", ("now", "{}")),
    case(
        '{"type": "function", "name": "find", "parameters": {"n": "5"}}',
        "",
        ("find", '{"n": "5"}'),
    ),
    case('{"name": "now", "arguments": {}}', "", ("now", "{}")),
    case('{"name": "now", "parameters": null}', "", ("now", "{}")),
    case('{"parameters": {"q": "é"}, "name": "find"}', "", ("find", '{"q": "é"}')),
    case(f'{{"name": "find", "parameters": {TRICKY}}}', "", ("find", TRICKY)),
    case(f'{{"name": "find", "parameters": {UNICODE}}}', "", ("find", UNICODE)),
    case(
        '{"name": "now", "parameters": {}}; {"name": "find", "parameters": {"n": 1}}',
        "",
        ("now", "{}"),
        ("find", '{"n": 1}'),
    ),
    case(
        '<|python_tag|>{"name": "now", "parameters": {}}\n{"name": "now", "parameters": {"a": {}}}',
        "",
        ("now", "{}"),
        ("now", '{"a": {}}'),
    ),
    case('{"name": "now", "parameters": {}} and so', " and so", ("now", "{}")),
    case('{"name": "now", "parameters": {}}; {"a": 1}', '; {"a": 1}', ("now", "{}")),
    case('So: <|python_tag|>{"name": "now", "parameters": {}}', "So: ", ("now", "{}")),
    case('{"name": "find", "parameters": {"q": "a', "", ("find", '{"q": "a'), cut=True),
    as_text('So: {"name": "now", "parameters": {}}'),
    as_text('{"name": "else", "parameters": {"q": "a"}}'),
    as_text('{"name": "find", "age": 3}'),
    as_text('{"name": "fi'),
    as_text('{"a": [1, 2, {"name": "now", "parameters": {}}]}'),
    as_text("<|python_tag|>print(1)"),
    as_text("{"),
    as_text("a plain answer {}"),
]

PYTHONIC = [
    case('[find(q="a")]', "", ("find", '{"q": "a"}')),
    case("[now()]", "", ("now", "{}")),
    case("[find(q='it\\'s', n=-1, x=1.5e3)]", "", ("find", '{"q": "it\'s", "n": -1, "x": 1500.0}')),
    case(
        "[find(deep=True, by=None), now()]",
        "",
        ("find", '{"deep": true, "by": null}'),
        ("now", "{}"),
    ),
    case("[find(deep=false, by=null)]", "", ("find", '{"deep": false, "by": null}')),
    case(
        '[find(tags=["a", "b)]"], q="(\\"")]', "", ("find", '{"tags": ["a", "b)]"], "q": "(\\""}')
    ),
    case(
        "[find(where={'city': {'x': (1, 2)}, 3: 4})]",
        "",
        ("find", '{"where": {"city": {"x": [1, 2]}, "3": 4}}'),
    ),
    case('[find(q="Zürich 日本 😀\\n\\u00e9\\x41")]', "", ("find", '{"q": "Zürich 日本 😀\\néA"}')),
    case('[find(q="\\ud83d\\ude00", n=1,)]', "", ("find", '{"q": "😀", "n": 1}')),
    case(" [ now ( ) ]".replace(" (", "("), " ", ("now", "{}")),
    case("<|python_start|>[now()]<|python_end|>", "", ("now", "{}")),
    case("<|tool_call_start|>[now()]<|tool_call_end|>ok", "ok", ("now", "{}")),
    case("[now(), find(q='a\nb' 'c')] then", " then", ("now", "{}"), ("find", '{"q": "a\\nbc"}')),
    case("[get-it_2(a=1)]", "", ("get-it_2", '{"a": 1}')),
    case("[now()", "", ("now", "{}")),
    case("[now(), find(q='a", ", find(q='a", ("now", "{}")),
    case("[now(), 3]", ", 3]", ("now", "{}")),
    case("[now()", "[now()", cut=True),
    as_text("[find(q='a"),
    as_text("[1, 2, 3]"),
    as_text("[now](http://x)"),
    as_text("[other(a=1)]"),
    as_text("[find('a')]"),
    as_text("[find(q=a.b)]"),
    as_text("[find(q=__import__('os'))]"),
    as_text("[find(q='\\ud800')]"),
    as_text("see [now()]"),
    as_text("["),
]

MISTRAL = [
    case('[TOOL_CALLS] [{"name": "find", "arguments": {"q": "a"}}]', "", ("find", '{"q": "a"}')),
    case('[TOOL_CALLS][{"name": "now", "arguments": {}}]', "", ("now", "{}")),
    case(
        '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}, '
        '{"name": "find", "arguments": {"n": 1}, "id": "abcdefgh1"}]',
        "",
        ("now", "{}"),
        ("find", '{"n": 1}'),
    ),
    case(f'[TOOL_CALLS][{{"name": "find", "arguments": {TRICKY}}}]', "", ("find", TRICKY)),
    case(f'[TOOL_CALLS][{{"name": "find", "arguments": {UNICODE}}}]', "", ("find", UNICODE)),
    case('[TOOL_CALLS]{"name": "now", "arguments": {}}', "", ("now", "{}")),
    case('[TOOL_CALLS][{"name": "now"}]', "", ("now", "{}")),
    case('[TOOL_CALLS][{"arguments": {"a": {}}, "name": "f"}]', "", ("f", '{"a": {}}')),
    case('Sure. [TOOL_CALLS][{"name": "now", "arguments": {}}] x', "Sure.  x", ("now", "{}")),
    case(
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": "[TOOL_CALLS]]"}}]',
        "",
        ("f", '{"a": "[TOOL_CALLS]]"}'),
    ),
    case('[TOOL_CALLS][{"name": "f", "arguments": {"a": "b', "", ("f", '{"a": "b'), cut=True),
    case('[TOOL_CALLS][{"name": "now", "arguments": {}}, {"n": 1}]', ', {"n": 1}]', ("now", "{}")),
    as_text("[TOOL_CALLS][1, 2]"),
    as_text("[TOOL_CALLS] ["),
    as_text("[TOOL_CALLS]"),
    as_text("[TOOL_CALLS]nothing of the kind"),
    as_text("a [TOOL_ b"),
]

MISTRAL_V11 = [
    case('[TOOL_CALLS]find[ARGS]{"q": "a"}', "", ("find", '{"q": "a"}')),
    case("[TOOL_CALLS]now[ARGS]{}", "", ("now", "{}")),
    case("[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}", "", ("now", "{}")),
    case('[TOOL_CALLS]now{"a": 1}', "", ("now", '{"a": 1}')),
    case("[TOOL_CALLS] get-it_2 [ARGS] {}".replace(" [ARGS]", "[ARGS]"), "", ("get-it_2", "{}")),
    case(
        '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]find[ARGS]{"n": {"m": [{}]}}',
        "",
        ("now", "{}"),
        ("find", '{"n": {"m": [{}]}}'),
    ),
    case(f"[TOOL_CALLS]find[ARGS]{TRICKY}", "", ("find", TRICKY)),
    case(f"[TOOL_CALLS]find[ARGS]{UNICODE}", "", ("find", UNICODE)),
    case("Sure.\n[TOOL_CALLS]now[ARGS]{} x", "Sure.\n x", ("now", "{}")),
    case(
        '[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]g[ARGS]{}"}',
        "",
        ("f", '{"a": "[TOOL_CALLS]g[ARGS]{}"}'),
    ),
    case('[TOOL_CALLS]f[ARGS]{"a": "b', "", ("f", '{"a": "b'), cut=True),
    case("[TOOL_CALLS]two words[TOOL_CALLS]now[ARGS]{}", "[TOOL_CALLS]two words", ("now", "{}")),
    as_text("[TOOL_CALLS]find[ARGS]"),
    as_text("[TOOL_CALLS]two words {}"),
    as_text("[TOOL_CALLS][ARGS]{}"),
    as_text("[TOOL_CALLS]" + "x" * 600 + "{}"),
    as_text("find[ARGS]{}"),
]

D = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
DEEPSEEK = [
    case(f"{D[0]}{D[1]}now{D[2]}{{}}{D[3]}{D[4]}", "", ("now", "{}")),
    case(f"{D[1]}find{D[2]}{TRICKY}{D[3]}", "", ("find", TRICKY)),
    case(f"Hm.\n\n{D[0]}{D[1]}find{D[2]}{UNICODE}{D[3]}{D[4]}", "Hm.\n\n", ("find", UNICODE)),
    case(
        f'{D[0]}{D[1]}now{D[2]}{{}}{D[3]}{D[1]}find{D[2]}{{"n": {{"m": 1}}}}{D[3]}{D[4]} x',
        " x",
        ("now", "{}"),
        ("find", '{"n": {"m": 1}}'),
    ),
    case(
        f"{D[0]}\n{D[1]}function{D[2]}now\n```json\n{{}}\n```{D[3]}\n"
        f'{D[1]}function{D[2]}find\n```json\n{{"q": "```"}}\n```{D[3]}\n{D[4]}',
        "\n",
        ("now", "{}"),
        ("find", '{"q": "```"}'),
    ),
    case(f'{D[1]}f{D[2]}{{"a": "{D[3]}"}}{D[3]}', "", ("f", f'{{"a": "{D[3]}"}}')),
    case(f'{D[1]}f{D[2]}{{"a": "b', "", ("f", '{"a": "b'), cut=True),
    case(f"{D[1]}f{D[2]}{{}}", "", ("f", "{}")),
    as_text(f"{D[0]} nothing"),
    as_text(f"{D[0]}{D[1]}two words{D[2]}{{}}{D[3]}{D[4]}"),
    as_text(f"{D[1]}f{D[2]}"),
    as_text("<｜tool"),
]

K = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
KIMI = [
    case(f"{K[0]}{K[1]}functions.now:0{K[2]}{{}}{K[3]}{K[4]}", "", ("now", "{}")),
    case(f"{K[1]}functions.find:12{K[2]}{TRICKY}{K[3]}", "", ("find", TRICKY)),
    case(f"Hm. {K[0]}{K[1]}find{K[2]}{UNICODE}{K[3]}{K[4]} x", "Hm.  x", ("find", UNICODE)),
    case(
        f"{K[0]}{K[1]}functions.now:0{K[2]}{{}}{K[3]}{K[1]}functions.get-it_2:1{K[2]}"
        f'{{"a": {{"b": []}}}}{K[3]}{K[4]}',
        "",
        ("now", "{}"),
        ("get-it_2", '{"a": {"b": []}}'),
    ),
    case(f"{K[1]}functions.a.b:0{K[2]} {{}} {K[3]}", "", ("a.b", "{}")),
    case(f'{K[1]}f:0{K[2]}{{"a": "{K[3]}"}}{K[3]}', "", ("f", f'{{"a": "{K[3]}"}}')),
    case(f'{K[1]}f:0{K[2]}{{"a": "b', "", ("f", '{"a": "b'), cut=True),
    case(f"{K[1]}f:0{K[2]}{{}}", "", ("f", "{}")),
    as_text(f"{K[0]} nothing"),
    as_text(f"{K[0]}{K[1]}two words{K[2]}{{}}{K[3]}{K[4]}"),
    as_text(f"{K[1]}functions.f:0{K[2]}"),
    as_text("<|tool_call"),
]


def glm(*pairs: tuple[str, str], name: str = "find") -> str:
    body = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in pairs
    )
    return f"<tool_call>{name}\n{body}</tool_call>"


GLM = [
    case(glm(("q", "hi")), "", ("find", '{"q": "hi"}')),
    case(glm(name="now"), "", ("now", "{}")),
    case("<tool_call>now</tool_call>", "", ("now", "{}")),
    case(glm(("q", "\n5 "), ("n", " 5")), "", ("find", '{"q": "\\n5 ", "n": 5}')),
    case(glm(("q", 'Zürich "日本" 😀\n')), "", ("find", '{"q": "Zürich \\"日本\\" 😀\\n"}')),
    case(glm(("where", '{"city": {"x": [1]}}')), "", ("find", '{"where": {"city": {"x": [1]}}}')),
    case(
        f"Hm.\n{glm(name='now')}\n{glm(('deep', 'true'))} x",
        "Hm.\n\n x",
        ("now", "{}"),
        ("find", '{"deep": true}'),
    ),
    case(
        glm(("q", "a</arg_value>b</tool_call>c")),
        "",
        ("find", '{"q": "a</arg_value>b</tool_call>c"}'),
    ),
    case(glm(("q", "")), "", ("find", '{"q": ""}')),
    case(
        "<tool_call>find<arg_key>q</arg_key><arg_value>a</arg_value></tool_call>",
        "",
        ("find", '{"q": "a"}'),
    ),
    case("<tool_call>find\n<arg_key>q</arg_key>\n<arg_value>a b", "", ("find", '{"q": "a b')),
    case(
        "<tool_call>find\n<arg_key>q</arg_key>\n<arg_value>a</arg_value>\n",
        "",
        ("find", '{"q": "a"}'),
    ),
    as_text("<tool_call>two words</tool_call>"),
    as_text("<tool_call>find\nthe thing</tool_call>"),
    as_text("<tool_call>fin"),
]

CASES: dict[str, list[Case]] = {
    "hermes": HERMES,
    "qwen3_coder": QWEN3_CODER,
    "llama3_json": LLAMA3,
    "pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "mistral_v11": MISTRAL_V11,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v31": DEEPSEEK,
    "kimi_k2": KIMI,
    "glm45": GLM,
}
