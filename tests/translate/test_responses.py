from __future__ import annotations

import base64

import pytest
from fakes.images import png

from cortex.errors import BadRequest, NotFound
from cortex.translate.chat import chat_body
from cortex.translate.conversation import (
    Document,
    Image,
    Role,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.translate.responses import read_count, read_response
from cortex.translate.responses_object import response_for
from cortex.translate.sealed_reasoning import seal

PNG = png()
PNG_URL = f"data:image/png;base64,{PNG}"
FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "g", "description": "Edit."}
HOSTED = [
    {"type": "web_search"},
    {"type": "local_shell"},
    {"type": "namespace", "name": "n", "tools": [FUNCTION]},
    {"type": "tool_search"},
    {"type": "brand_new"},
]


def read(*items, **fields):
    given = {"model": "m", "input": list(items) if items else "Hi", **fields}
    return read_response(given).conversation


def user(*parts):
    return {"role": "user", "content": list(parts)}


def turns(*items):
    return read(*items).turns


def choice(value, *tools):
    return read(tools=list(tools) or [FUNCTION, CUSTOM], tool_choice=value).tool_choice


# Input


def test_a_text_is_a_users_turn():
    found = read(instructions="Be brief.", temperature=0.5, top_p=0.9, max_output_tokens=9)
    assert found.system == (Text("Be brief."),)
    assert found.turns == (Turn(Role.USER, (Text("Hi"),)),)
    assert (found.sampling.temperature, found.sampling.top_p, found.max_tokens) == (0.5, 0.9, 9)
    assert not found.stream


def test_leading_system_and_developer_messages_follow_the_instructions():
    found = read(
        {"role": "system", "content": "a"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {"role": "developer", "content": "d"},
        instructions="first",
    )
    assert found.system == (Text("first"), Text("a"), Text("b"))
    assert found.turns == (
        Turn(Role.USER, (Text("c"),)),
        Turn(Role.SYSTEM, (Text("d"),)),
    )


def test_a_tool_turn():
    assert turns(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{ "b": 1, "a": 2 }'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": 'say "x"\n'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": PNG_URL},
            ],
        },
        {"role": "user", "content": "Thanks"},
    ) == (
        Turn(Role.USER, (Text("Weather?"),)),
        Turn(
            Role.ASSISTANT,
            (
                Thinking("r"),
                Text("Let me see."),
                ToolUse("c1", "f", '{ "b": 1, "a": 2 }'),
                ToolUse("c2", "g", '{"input":"say \\"x\\"\\n"}'),
            ),
        ),
        Turn(
            Role.USER,
            (
                ToolResult("c1", (Text("sunny"),)),
                ToolResult("c2", (Text("see"), Image(PNG_URL))),
                Text("Thanks"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "kept"), [("", "{}"), ("{oops", "{oops"), ('{"n": 1e99}', '{"n": 1e99}')]
)
def test_arguments_are_left_as_they_are(arguments, kept):
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    assert turns(call) == (Turn(Role.ASSISTANT, (ToolUse("c", "f", kept),)),)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"encrypted_content": seal("mine")}, "mine"),
        ({"encrypted_content": seal("mine"), "summary": [{"type": "x", "text": "s"}]}, "mine"),
        ({"encrypted_content": "gAAAAforeign"}, None),
        (
            {
                "encrypted_content": "gAAAAforeign",
                "summary": [
                    {"type": "summary_text", "text": "a"},
                    {"type": "summary_text", "text": "b"},
                ],
            },
            "a\nb",
        ),
        ({"content": [{"type": "reasoning_text", "text": "c"}]}, "c"),
        ({"encrypted_content": None}, None),
    ],
)
def test_reasoning_is_replayed_where_its_text_is_known(fields, text):
    found = turns({"role": "user", "content": "x"}, {"type": "reasoning", "id": "rs_1", **fields})
    expected = (Turn(Role.USER, (Text("x"),)),)
    if text is not None:
        expected += (Turn(Role.ASSISTANT, (Thinking(text),)),)
    assert found == expected


def test_items_of_other_types_are_left_out_and_named():
    items = [{"type": "web_search_call"}, {"type": "zzz"}, {"role": "user", "content": "x"}]
    asked = read_response({"model": "m", "input": [*items, {"type": "zzz"}]})
    assert asked.dropped == ("web_search_call", "zzz")
    assert asked.conversation.turns == (Turn(Role.USER, (Text("x"),)),)


def test_input_of_which_nothing_is_left_still_makes_a_prompt():
    body = chat_body(read({"type": "zzz"}), "m")
    assert body["messages"] == [{"role": "user", "content": ""}]


def test_parts_of_a_user():
    text = base64.b64encode(b"a,b").decode()
    assert turns(
        user(
            {"type": "input_text", "text": "see"},
            {"type": "input_image", "image_url": PNG_URL, "detail": "auto"},
            {"type": "input_file", "file_data": f"data:text/csv;base64,{text}", "filename": "x"},
            {"type": "input_file", "file_data": text, "filename": "t.CSV"},
            {"type": "hologram"},
        )
    ) == (
        Turn(
            Role.USER,
            (
                Text("see"),
                Image(PNG_URL),
                Document("a,b", title="x"),
                Document("a,b", title="t.CSV"),
                Text("[content of type hologram is not supported here]"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("part", "param", "text"),
    [
        ({"type": "input_image", "image_url": "https://x/y.png"}, "image_url", "does not fetch"),
        ({"type": "input_image", "file_id": "file-1"}, "file_id", "keeps no files"),
        ({"type": "input_image"}, "image_url", "required"),
        ({"type": "input_image", "image_url": "data:image/png;base64,eA=="}, "image_url", "match"),
        ({"type": "input_image", "image_url": "data:text/x;base64,eA=="}, "image_url", "should be"),
        ({"type": "input_file", "file_url": "https://x/y.txt"}, "file_url", "does not fetch"),
        ({"type": "input_file", "file_id": "file-1"}, "file_id", "keeps no files"),
        ({"type": "input_file"}, "file_data", "required"),
        ({"type": "input_file", "file_data": "eA==", "filename": "a.pdf"}, "file_data", "pdf"),
        (
            {"type": "input_file", "file_data": "data:application/pdf;base64,eA=="},
            "file_data",
            "this model does not support pdf input",
        ),
        ({"type": "input_file", "file_data": "eA==", "filename": "a.exe"}, "file_data", "text"),
        ({"type": "input_file", "file_data": "data:text/plain,x"}, "file_data", "base64"),
        ({"type": "input_file", "file_data": "data:text/plain;base64,%"}, "file_data", "base64"),
        ({"type": "input_audio", "input_audio": {}}, None, "audio"),
    ],
)
def test_media_that_cannot_be_honoured_is_refused(part, param, text):
    with pytest.raises(BadRequest, match=text) as caught:
        read(user({"type": "input_text", "text": "x"}, part))
    path = "input[0].content[1]"
    assert caught.value.param == (path if param is None else f"{path}.{param}")
    assert caught.value.message.startswith(f"{caught.value.param}: ")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_not_found"),
        ({"conversation": "conv_1"}, "conversation_not_found"),
        ({"conversation": {"id": "conv_1"}}, "conversation_not_found"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt_not_found"),
    ],
)
def test_what_only_a_store_could_know_is_not_found(fields, code):
    with pytest.raises(NotFound) as caught:
        read(**fields)
    assert caught.value.error_code == code
    assert [caught.value.param] == list(fields)
    with pytest.raises(NotFound):
        read_count({"model": "m", "input": "Hi", **fields})


def test_a_reference_to_an_item_is_refused():
    with pytest.raises(BadRequest, match="msg_1") as caught:
        read({"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"})
    assert (caught.value.param, caught.value.error_code) == ("input[1]", "item_not_found")


# Tools


def test_a_custom_tool_is_a_function_of_one_text():
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    found = read(tools=[FUNCTION, {**CUSTOM, "format": grammar}, *HOSTED]).tools
    assert found[0] == Tool("f", "d", {"type": "object"}, None)
    assert found[1].name == "g"
    assert found[1].description == (
        "Edit.\n\nThe input has to match this Lark grammar:\nstart: /x+/"
    )
    assert found[1].parameters["required"] == ["input"]
    assert len(found) == 2


def test_a_function_without_parameters_takes_none():
    [tool] = read(tools=[{"type": "function", "name": "f"}]).tools
    assert tool.parameters == {"type": "object", "properties": {}}


ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "g"}]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("auto", ToolChoice()),
        ("none", ToolChoice(ToolMode.NONE)),
        ("required", ToolChoice(ToolMode.REQUIRED)),
        ({"type": "function", "name": "f"}, ToolChoice(ToolMode.NAMED, "f")),
        ({"type": "custom", "name": "g"}, ToolChoice(ToolMode.NAMED, "g")),
        (ALLOWED, ToolChoice(ToolMode.REQUIRED, allowed=("g",))),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}] * 2,
            },
            ToolChoice(ToolMode.AUTO, allowed=("f",)),
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
            ToolChoice(ToolMode.NONE),
        ),
        ({"type": "web_search_preview"}, None),
        ({"type": "mcp", "server_label": "x"}, None),
        ({"type": "brand_new"}, None),
    ],
)
def test_every_form_of_choice(value, expected):
    assert choice(value) == expected


def test_a_choice_of_a_tool_that_is_left_out_is_none():
    assert choice({"type": "function", "name": "n"}, *HOSTED) is None
    assert choice("required", *HOSTED) is None


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("always", "tool_choice"),
        ({}, "tool_choice"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "nobody"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "none", "tools": [FUNCTION]}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["f"]}, "tool_choice.tools[0]"),
        (
            {"type": "allowed_tools", "tools": [FUNCTION, {"type": "function", "name": "x"}]},
            "tool_choice.tools[1].name",
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": [HOSTED[0]]}, "tool_choice"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(value, param):
    with pytest.raises(BadRequest) as caught:
        choice(value)
    assert (caught.value.param or "").startswith(param)
    with pytest.raises(BadRequest):
        read(tool_choice="required")


def test_allowed_tools_are_sent_as_chat_knows_them():
    body = chat_body(read(tools=[FUNCTION, CUSTOM], tool_choice=ALLOWED), "m")
    assert body["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "g"}}],
        },
    }


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_calls(parallel):
    body = chat_body(read(tools=[FUNCTION], parallel_tool_calls=parallel), "m")
    assert body["parallel_tool_calls"] is parallel
    assert "parallel_tool_calls" not in chat_body(read(parallel_tool_calls=parallel), "m")


# The rest


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "x", "schema": {"type": "array"}}, {"type": "array"}),
    ],
)
def test_the_form_of_the_text(form, schema):
    assert read(text={"format": form}).schema == schema


def test_sampling_beyond_openais_is_passed_on():
    fields = {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 7,
    }
    body = chat_body(read(**fields), "m")
    assert {name: body[name] for name in fields} == fields
    told = settings(**fields)
    assert (told["presence_penalty"], told["frequency_penalty"]) == (0.5, -0.5)


def test_the_effort_is_passed_on():
    assert chat_body(read(reasoning={"effort": "none"}), "m")["reasoning_effort"] == "none"
    assert "reasoning_effort" not in chat_body(read(reasoning={"summary": "auto"}), "m")


def test_an_assistants_text_at_the_end_is_not_continued():
    body = chat_body(
        read({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}), "m"
    )
    assert body["messages"][-1] == {"role": "assistant", "content": "y"}
    assert "continue_final_message" not in body


def test_counting_reads_the_same_prompt():
    fields = {"model": "m", "input": "Hi", "instructions": "x", "tools": [FUNCTION, CUSTOM]}
    counted, asked = read_count(fields), read_response(fields).conversation
    assert (counted.system, counted.turns, counted.tools) == (
        asked.system,
        asked.turns,
        asked.tools,
    )


# What a response says of its request


def settings(**fields):
    request = {"model": "m", "input": "Hi", **fields}
    return response_for(read_response(request), "resp_1", 1).settings


def test_what_is_not_asked_for_has_the_apis_defaults():
    found = settings()
    assert found["tool_choice"] == "auto"
    assert found["tools"] == []
    assert found["parallel_tool_calls"] is True
    assert found["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert (found["temperature"], found["top_p"], found["metadata"]) == (1.0, 1.0, {})


def test_nothing_is_stored_whatever_was_asked():
    found = settings(store=True, truncation="auto")
    assert found["store"] is False
    assert found["truncation"] == "disabled"


def test_what_is_in_effect_is_echoed():
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    found = settings(
        tools=[FUNCTION, CUSTOM, *HOSTED],
        tool_choice=ALLOWED,
        parallel_tool_calls=False,
        text={"format": form, "verbosity": "low"},
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        prompt_cache_key="k",
        max_output_tokens=7,
    )
    assert [tool["type"] for tool in found["tools"]] == ["function", "custom"]
    assert found["tools"][0] == {**FUNCTION, "strict": None}
    assert found["tools"][1] == {**CUSTOM, "format": {"type": "text"}}
    assert found["tool_choice"] == ALLOWED
    assert found["parallel_tool_calls"] is False
    assert found["text"] == {
        "format": {**form, "description": None, "strict": True},
        "verbosity": "low",
    }
    assert found["reasoning"] == {"effort": "low", "summary": None}
    assert (found["metadata"], found["prompt_cache_key"]) == ({"a": "b"}, "k")
    assert found["max_output_tokens"] == 7
    named = settings(tools=[CUSTOM], tool_choice={"type": "custom", "name": "g"})
    assert named["tool_choice"] == {"type": "custom", "name": "g"}
