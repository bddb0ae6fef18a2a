"""Chat templates: rendered as Hugging Face renders them, bounded, and never a crash."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.chat_templates import LLAMA3, MISTRAL, PARTS, QWEN3
from fakes.tokenizers import byte_level, byte_level_json, metaspace, write
from transformers import AutoTokenizer

from cortex.errors import CheckpointError, TemplateError
from cortex.text.template import EFFORTS, ChatTemplate

DEMO = Path(__file__).resolve().parents[2] / "cortex" / "neuron" / "demo"
TOKENIZER = byte_level()
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a <city>, 'now' & \"then\" é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "n": [1, 2.5, None]}},
}
ALONE = [{"role": "user", "content": "  Hi, what is <this> & that?\n"}]
LONG = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three? 日本 😀"},
]
CALLED = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"c": 3}', "tool_call_id": "call_1"},
]


DOUBLING = "{% set n = namespace(s='xxxxxxxx') %}"


def template(source: str, tokenizer: Any = TOKENIZER) -> ChatTemplate:
    return ChatTemplate({"default": source}, tokenizer)


def says(source: str, messages: Any = ALONE, **more: Any) -> str:
    return template(source).render(messages, **more)


@pytest.mark.parametrize("source", [QWEN3, LLAMA3, MISTRAL], ids=["qwen3", "llama3", "mistral"])
@pytest.mark.parametrize("messages", [ALONE, LONG, CALLED], ids=["alone", "long", "called"])
@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["bare", "tools"])
@pytest.mark.parametrize("more", [{}, {"enable_thinking": False}], ids=["plain", "kwargs"])
def test_text_and_ids_are_those_of_transformers(tmp_path, source, messages, tools, more):
    if source is MISTRAL and messages is CALLED:
        messages = LONG[1:]
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    write(tmp_path, byte_level_json(), config, source)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.from_directory(tmp_path, byte_level(config))
    options: dict[str, Any] = {"tools": tools, "add_generation_prompt": True}
    text = theirs.apply_chat_template(messages, tokenize=False, **options, **more)
    assert ours.render(messages, **options, kwargs=more) == text
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode_chat(messages, **options, kwargs=more) == ids


@pytest.mark.parametrize("content", ["Half a", "Half a ", "a\n\n"])
@pytest.mark.parametrize("source", [QWEN3, LLAMA3, MISTRAL], ids=["qwen3", "llama3", "mistral"])
def test_a_final_message_is_continued_as_transformers_does(tmp_path, source, content):
    write(
        tmp_path,
        byte_level_json(),
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        source,
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.from_directory(tmp_path, byte_level({"bos_token": "<|endoftext|>"}))
    messages = [LONG[1], {"role": "assistant", "content": content}]
    text = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ours.render(messages, continue_final_message=True) == text


def test_the_demo_is_rendered_as_transformers_renders_it():
    from cortex.text.tokenizer import Tokenizer

    theirs = AutoTokenizer.from_pretrained(DEMO)
    tokenizer = Tokenizer.from_directory(DEMO)
    ours = ChatTemplate.from_directory(DEMO, tokenizer)
    for messages in (ALONE, LONG, CALLED):
        options: dict[str, Any] = {"tools": [WEATHER], "add_generation_prompt": True}
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
        assert ours.render(messages, **options) == text
        assert ours.encode_chat(messages, **options) == theirs.encode(text)
    assert ours.features.tools
    assert ours.features.thinking
    assert ours.features.system


def test_string_arguments_are_objects_to_the_template():
    function = {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
    called = [
        ALONE[0],
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
    ]
    assert '"arguments": {"city": "Zürich"}' in says(QWEN3, called)
    function["arguments"] = "not json"
    assert '"arguments": "not json"' in says(QWEN3, called)
    function["arguments"] = ""
    assert '"arguments": {}' in says(QWEN3, called)


def test_parts_and_strings_become_what_the_template_takes():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in says(QWEN3, [{"role": "user", "content": parts}])
    assert says(PARTS, [{"role": "user", "content": "one"}]) == "<|im_start|>user\none<|im_end|>\n"
    assert "user\nonetwo<|im_end|>" in says(PARTS, [{"role": "user", "content": parts}])


def test_a_part_that_is_no_text_is_refused_by_its_path():
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]
    with pytest.raises(TemplateError, match="image_url") as caught:
        says(QWEN3, [{"role": "user", "content": content}])
    assert caught.value.param == "messages[0].content[1]"


def test_a_developer_is_a_system_message_where_the_template_knows_none():
    messages = [{"role": "developer", "content": "D"}, ALONE[0]]
    assert says(QWEN3, messages).startswith("<|im_start|>system\nD<|im_end|>")


def test_late_system_messages_are_merged_only_where_the_template_refuses_them():
    late = [LONG[0], LONG[1], {"role": "system", "content": "Late."}]
    assert says(QWEN3, late).startswith("<|im_start|>system\n Be brief. \n\nLate.<|im_end|>")
    easy = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    assert says(easy, late) == "system: Be brief. ;user:One?;system:Late.;"


def test_a_template_without_system_messages_gets_them_in_the_users():
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }};{% endfor %}"
    )
    assert says(source, LONG[:2]) == " Be brief. \n\nOne?;"


def test_a_refusal_carries_the_templates_own_words():
    with pytest.raises(TemplateError, match="Roles must alternate user/assistant"):
        says(MISTRAL, [LONG[1], LONG[1]])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.foo.bar.baz }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content.__class__.__bases__ }}",
        "{{ messages.append(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ unknown() }}",
        "{{ namespace(__class__=1) }}",
        "{% for a in range(10000000) %}x{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ messages | tojson(indent=10 ** 9) }}",
        DOUBLING + "{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        DOUBLING + "{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    ],
)
def test_a_hostile_template_is_an_error_of_its_own(source):
    with pytest.raises((TemplateError, CheckpointError)):
        says(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% generation %}x", "{{ a | nofilter }}"])
def test_what_is_no_template_is_told_when_it_is_read(source):
    with pytest.raises(CheckpointError):
        template(source)


def test_the_file_beside_the_tokenizer_goes_first(tmp_path):
    config = {"chat_template": "from the config"}
    write(tmp_path, byte_level_json(), config, "from the file")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from the json"}))
    found = []
    for name in ("chat_template.jinja", "chat_template.json", None):
        found.append(ChatTemplate.from_directory(tmp_path, byte_level(config)).render(ALONE))
        if name:
            (tmp_path / name).unlink()
    assert found == ["from the file", "from the json", "from the config"]


def test_named_templates_are_chosen_by_whether_there_are_tools(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tooled"}]
    ours = ChatTemplate.from_directory(tmp_path, byte_level({"chat_template": named}))
    assert ours.render(ALONE) == "plain"
    assert ours.render(ALONE, tools=[WEATHER]) == "tooled"
    with pytest.raises(CheckpointError, match="default"):
        ChatTemplate.from_directory(tmp_path, byte_level({"chat_template": named[1:]}))


def test_without_a_template_chatml_serves_where_the_vocabulary_has_it(tmp_path):
    ours = ChatTemplate.from_directory(tmp_path, TOKENIZER)
    assert ours.render(LONG[1:2]) == "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    assert not ours.features.tools
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.from_directory(tmp_path, metaspace())
    assert ChatTemplate.find(tmp_path, metaspace()) is None


def test_features_are_what_the_template_was_seen_to_do():
    qwen, llama, mistral = (template(source).features for source in (QWEN3, LLAMA3, MISTRAL))
    assert (qwen.tools, qwen.thinking, qwen.system) == (True, True, True)
    assert (llama.tools, llama.thinking, llama.system) == (True, False, True)
    assert (mistral.tools, mistral.thinking, mistral.system) == (False, False, True)


def test_a_call_without_content_is_null_or_empty_as_the_template_needs():
    null = (
        "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    empty = (
        "{% for m in messages %}{{ m.content + '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"
    )
    for content in (None, ""):
        called = [{"role": "user", "content": "u"}, {**CALLED[1], "content": content}]
        assert says(null, called) == "uget_weather"
        assert says(empty, called) == "uget_weather"


@pytest.mark.parametrize("messages", [[], ALONE, [{"role": "assistant", "content": None}]])
def test_only_an_assistants_message_can_be_continued(messages):
    with pytest.raises(TemplateError, match="continue_final_message"):
        says(QWEN3, messages, continue_final_message=True)


STRICT_EFFORT = (
    "{% if reasoning_effort is defined and reasoning_effort not in ['low', 'high'] %}"
    "{{ raise_exception('low or high') }}{% endif %}{{ messages[0].content }}"
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% if thinking %}<think>{% endif %}"
)


def test_the_switches_and_efforts_that_a_template_takes_are_found():
    assert template(QWEN3).features.switches == ("enable_thinking",)
    assert template(QWEN3).features.efforts == ()
    strict = template(STRICT_EFFORT).features
    assert (strict.switches, strict.efforts) == (("thinking",), ("low", "high"))
    lax = template("{{ reasoning_effort }}{{ messages[0].content }}").features
    assert (lax.switches, lax.efforts) == ((), EFFORTS)
    # What a message or a local variable is called is no switch.
    local = "{% set enable_thinking = 1 %}{{ messages[0].thinking }}{{ messages[0].content }}"
    assert template(local).features.switches == ()


SHORT_IDS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('nine, please') }}{% endif %}"
    "[TOOL_CALLS]{{ c.function.name }}:{{ c.id }}{% endfor %}"
    "{% if m.tool_call_id %}<{{ m.tool_call_id }}{% endif %};{% endfor %}"
)


def test_ids_of_calls_are_shortened_for_a_template_that_refuses_long_ones():
    def history(call_id):
        function = {"name": "f", "arguments": "{}"}
        call = {"id": call_id, "type": "function", "function": function}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        return [ALONE[0], said, {"role": "tool", "tool_call_id": call_id, "content": "r"}]

    text = says(SHORT_IDS, history("toolu_0123456789"))
    (called,), (answered,) = re.findall(r"f:(\w{9});", text), re.findall(r"<(\w{9});", text)
    assert called == answered
    assert says(SHORT_IDS, history("toolu_other")) != text
    assert "f:abcDEF123;" in says(SHORT_IDS, history("abcDEF123"))
    any_length = SHORT_IDS.replace("!= 9", "< 2")
    assert "f:toolu_0123456789;" in says(any_length, history("toolu_0123456789"))
