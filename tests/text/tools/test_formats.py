"""The table of formats: found by a template's text, each row whole."""

from __future__ import annotations

import pytest
from fakes.chat_templates import LLAMA3, QWEN3

from cortex.text.tools.formats import BY_NAME, FORMATS, ToolFormat, find_format

# What the chat templates of each family say of calls.
TEMPLATES = {
    "hermes": QWEN3,
    "qwen3_coder": "'<tool_call>\\n<function=' + call.name + '>\\n' ... '</tool_call>' arguments",
    "glm45": "<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key> arguments </tool_call>",
    "mistral": "'[TOOL_CALLS] [' ... '{\"name\": ' ... ', \"id\": \"' + tool_call.id",
    "mistral_v11": "'[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜> ```json",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜> + name + <｜tool▁sep｜>",
    "kimi_k2": "<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>{{ args }}<|tool_call_end|>",
    "pythonic": "put it in the format of [func_name1(params_name1=params_value1...), func_name2()]",
    "llama3_json": "'Environment: ipython\\n' ... '{\"name\": \"' + name ... '\"parameters\": '",
}

OPTIONAL = {"[CALL_ID]", "[ARGS]"}  # which one of two rows writes


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_known_by_the_template(name: str) -> None:
    assert find_format(TEMPLATES[name]) is BY_NAME[name]


def test_a_template_that_says_nothing_of_calls_has_no_format() -> None:
    assert find_format(LLAMA3) is None
    assert find_format("") is None


def test_every_row_is_found_and_has_a_name_of_its_own() -> None:
    assert set(TEMPLATES) == set(BY_NAME)
    assert len(BY_NAME) == len(FORMATS)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_markers_of_a_row_stand_in_what_it_says_of_calls(row: ToolFormat) -> None:
    way = row.spelling
    spelled = way.begin + way.before_name + way.before_arguments + way.after_arguments + way.end
    spelled += "".join((*row.open, *row.close))
    tags = way.tags
    if tags is not None:
        spelled += tags.key_open + tags.key_end + tags.value_open + tags.value_end
    assert all(marker in spelled for marker in row.markers if marker not in OPTIONAL)
