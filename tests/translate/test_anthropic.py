from __future__ import annotations

import pytest
from fakes.images import png
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.translate.anthropic import read_count, read_messages
from cortex.translate.chat import chat_body, tokenize_body
from cortex.translate.conversation import (
    Document,
    Image,
    Overflow,
    Reasoning,
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
from cortex.wire import json

many = settings(max_examples=100, deadline=None)
PNG = png()


def ask(*messages, **fields):
    body = {"model": "m", "max_tokens": 16, "messages": list(messages), **fields}
    return read_messages({key: value for key, value in body.items() if value is not ...})


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def text(value):
    return {"type": "text", "text": value}


def turns(*messages):
    return [(turn.role.value, list(turn.blocks)) for turn in ask(*messages).turns]


HELLO = {"role": "user", "content": "hello"}


def test_the_least_request():
    found = ask(HELLO)
    assert found.turns == (Turn(Role.USER, (Text("hello"),)),)
    assert (found.model, found.max_tokens, found.stream) == ("m", 16, False)
    assert found.overflow is Overflow.ERROR
    assert found.reasoning == Reasoning()


def test_sampling_and_limits_are_kept():
    found = ask(
        HELLO,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["A", "B"],
        stream=True,
        metadata={"user_id": "u"},
    )
    assert (found.sampling.temperature, found.sampling.top_p, found.sampling.top_k) == (
        0.5,
        0.9,
        40,
    )
    assert found.sampling.stop == ("A", "B")
    assert (found.stream, found.user) == (True, "u")


@pytest.mark.parametrize("system", ["be brief", [text("be brief")], [text(""), text("be brief")]])
def test_system_as_text_and_as_blocks_are_the_same(system):
    assert ask(HELLO, system=system).system == (Text("be brief"),)


@pytest.mark.parametrize("system", [None, "", [], [text("")]])
def test_an_empty_system_prompt_is_none(system):
    assert ask(HELLO, system=system).system == ()


def test_the_billing_block_never_reaches_the_prompt():
    def body(cch):
        header = text(f"x-anthropic-billing-header: cc_version=2.1; cch={cch};")
        return chat_body(ask(HELLO, system=[header, text("be brief")]), "m")

    assert body("aaa") == body("bbb")
    assert body("aaa")["messages"][0] == {"role": "system", "content": "be brief"}


def test_system_messages_stay_in_their_place():
    found = turns(HELLO, {"role": "system", "content": [text("mind")]}, assistant(text("ok")))
    assert found == [
        ("user", [Text("hello")]),
        ("system", [Text("mind")]),
        ("assistant", [Text("ok")]),
    ]


def test_neighbouring_turns_of_one_side_are_merged():
    assert turns(HELLO, user(text("there")), assistant(text("a")), assistant(text("b"))) == [
        ("user", [Text("hello"), Text("there")]),
        ("assistant", [Text("a"), Text("b")]),
    ]


@pytest.mark.parametrize("nothing", ["", [], [text("")], None])
def test_empty_turns_are_harmless(nothing):
    assert turns({"role": "user", "content": nothing}) == [("user", [])]
    assert turns(HELLO, {"role": "assistant", "content": nothing}) == [("user", [Text("hello")])]
    assert turns({"role": "assistant", "content": nothing}) == [("user", [])]
    messages = chat_body(ask({"role": "user", "content": nothing}), "m")["messages"]
    assert messages == [{"role": "user", "content": ""}]


def test_thinking_of_any_signature_is_kept_and_redacted_thinking_dropped():
    thinking = {"type": "thinking", "thinking": "hm", "signature": "foreign"}
    redacted = {"type": "redacted_thinking", "data": "xx"}
    assert turns(HELLO, assistant(thinking, redacted, text("a")))[1] == (
        "assistant",
        [Thinking("hm"), Text("a")],
    )


def test_calls_and_results_of_every_form():
    call = {"type": "tool_use", "id": "call_a.b", "name": "f", "input": {"z": 1, "a": [None]}}

    def result(**fields):
        return {"type": "tool_result", "tool_use_id": "call_a.b", **fields}

    found = turns(
        HELLO,
        assistant(call),
        user(
            result(),
            result(content="x", is_error=True),
            result(content=[text("a"), text(""), text("b")]),
            result(content=[{"type": "tool_reference", "tool_name": "g"}]),
        ),
    )
    assert found[1] == ("assistant", [ToolUse("call_a.b", "f", '{"z":1,"a":[null]}')])
    assert found[2][1] == [
        ToolResult("call_a.b"),
        ToolResult("call_a.b", (Text("x"),), True),
        ToolResult("call_a.b", (Text("a"), Text("b"))),
        ToolResult("call_a.b", (Text("g"),)),
    ]


def test_documents_become_text():
    plain = {"type": "text", "media_type": "text/plain", "data": "body"}
    nested = {"type": "content", "content": [text("a"), text("b")]}
    search = {"type": "search_result", "source": "s", "title": "t", "content": [text("hit")]}
    found = turns(
        user(
            {"type": "document", "source": plain, "title": "T", "context": "C"},
            {"type": "document", "source": nested},
            {"type": "document", "source": {"type": "content", "content": "c"}},
            search,
        )
    )
    assert found[0][1] == [
        Document("body", title="T", context="C"),
        Document("a\nb"),
        Document("c"),
        Document("hit", title="t", origin="s"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "image/png", "data": PNG},
        {"type": "url", "url": f"data:image/png;base64,{PNG}"},
    ],
)
def test_images_become_data_urls(source):
    found = turns(user({"type": "image", "source": source}))
    assert found[0][1] == [Image(f"data:image/png;base64,{PNG}")]


BASE64 = {"type": "base64", "media_type": "image/png", "data": PNG}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "image", "source": {**BASE64, "media_type": "image/bmp"}}, "Input should be"),
        ({"type": "image", "source": {**BASE64, "media_type": "image/jpeg"}}, "does not match"),
        ({"type": "image", "source": {**BASE64, "data": PNG[:-1]}}, "invalid base64"),
        ({"type": "image", "source": {**BASE64, "data": ""}}, "Field required"),
        ({"type": "image", "source": {"type": "url", "url": "http://x/a.png"}}, "does not fetch"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "keeps no files"),
        ({"type": "image", "source": {"type": "url", "url": "data:x"}}, "expected a data URL"),
        (
            {"type": "document", "source": {**BASE64, "media_type": "application/pdf"}},
            "does not support pdf input",
        ),
        ({"type": "document", "source": {"type": "url", "url": "http://x"}}, "does not fetch"),
        ({"type": "document", "source": {"type": "file"}}, "text or content only"),
        ({"type": "tool_use", "id": "a", "name": "f", "input": "x"}, "expected an object"),
        ({"type": "tool_result", "content": "x"}, "Field required"),
        ({"type": "text"}, "Field required"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_path(block, words):
    with pytest.raises(BadRequest, match=words) as caught:
        ask(HELLO, assistant(text("a")), user(text("x"), block))
    assert caught.value.message.startswith("messages.2.content.1.")
    assert caught.value.param is not None
    assert caught.value.message.startswith(caught.value.param)


def test_a_wrong_media_type_is_told_in_the_words_clients_know():
    with pytest.raises(BadRequest) as caught:
        ask(user({"type": "image", "source": {**BASE64, "media_type": "image/bmp"}}))
    assert caught.value.message == (
        "messages.0.content.0.image.source.base64.media_type: Input should be 'image/jpeg', "
        "'image/png', 'image/gif', 'image/webp'"
    )


def test_unknown_blocks_are_never_refused():
    strange = {"type": "hologram", "x": [1]}
    server = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    summary = {"type": "compaction", "content": "so far"}
    found = turns(user(strange), assistant(strange, server, summary, text("a")))
    assert found == [
        ("user", [Text("[content of type hologram is not supported here]")]),
        ("assistant", [Text("so far"), Text("a")]),
    ]


def test_fields_of_the_vendors_betas_are_never_refused():
    ask(
        {**HELLO, "id": 1},
        cache_control={"type": "ephemeral", "ttl": "1h"},
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        container=5,
        service_tier="auto",
        speed="fast",
        inference_geo="us",
        diagnostics={},
        thread="t",
        fallbacks=[1],
        mcp_servers=[],
        safeguards=None,
        betas=["a"],
    )


def test_mcp_servers_are_never_dialled():
    with pytest.raises(BadRequest, match=r"^mcp_servers: "):
        ask(HELLO, mcp_servers=[{"url": "http://internal"}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": ...}, "messages: Field required"),
        ({"model": ...}, "model: Field required"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: Field required"),
        (
            {"tool_choice": {"type": "tool", "name": "x"}},
            "tool_choice.name: Tool 'x' not found in provided tools",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 16}},
            "`max_tokens` must be greater than `thinking.budget_tokens`",
        ),
        ({"max_tokens": "5"}, "max_tokens: expected an integer, got a string"),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            "messages.0.role: Input should be 'user', 'assistant' or 'system'",
        ),
    ],
)
def test_the_words_of_refusals(fields, message):
    with pytest.raises(BadRequest) as caught:
        ask(HELLO, **fields)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("thinking", "reasoning"),
    [
        ({"type": "enabled", "budget_tokens": 8}, Reasoning(enabled=True, budget_tokens=8)),
        ({"type": "adaptive"}, Reasoning(enabled=True)),
        ({"type": "adaptive", "display": "omitted"}, Reasoning(enabled=True, shown=False)),
        ({"type": "disabled", "budget_tokens": 8}, Reasoning(enabled=False)),
        ({"type": "telepathic"}, Reasoning()),
        (None, Reasoning()),
    ],
)
def test_thinking(thinking, reasoning):
    assert ask(HELLO, thinking=thinking).reasoning == reasoning


@pytest.mark.parametrize(
    ("effort", "told"), [("low", "low"), ("max", "xhigh"), ("huge", None), (None, None)]
)
def test_effort(effort, told):
    assert ask(HELLO, output_config={"effort": effort}).reasoning.effort == told


@pytest.mark.parametrize("fields", [{"output_config": {"format": ...}}, {"output_format": ...}])
def test_the_schema_of_the_answer(fields):
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {k: {"format": wanted} if k == "output_config" else wanted for k in fields}
    assert ask(HELLO, **fields).schema == {"type": "object"}
    assert ask(HELLO, output_format={"type": "text"}).schema is None


def test_tools_of_every_form():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    extra = {"eager_input_streaming": True, "defer_loading": False, "cache_control": {}}
    found = ask(
        HELLO,
        tools=[
            {"name": "a", "description": "A", "input_schema": schema, **extra},
            {"name": "b", "type": "custom", "strict": True, "input_examples": [1]},
            {"name": "c", "type": None, "input_schema": None},
            {"name": "bash", "type": "bash_20250124"},
            {"name": "str_replace_based_edit_tool", "type": "text_editor_20250728"},
            {"name": "web_search", "type": "web_search_20250305", "max_uses": 5},
            {"type": "thing_from_the_future"},
        ],
    ).tools
    assert [tool.name for tool in found] == ["a", "b", "c", "bash", "str_replace_based_edit_tool"]
    assert found[0] == Tool("a", "A", schema)
    assert found[1] == Tool("b", None, {"type": "object", "properties": {}}, True)
    assert found[3].parameters["properties"]["command"] == {"type": "string"}


@pytest.mark.parametrize("name", ["a.b", "ünï", "x" * 129, ""])
def test_tool_names_are_checked(name):
    with pytest.raises(BadRequest, match=r"^tools\.0\.name: "):
        ask(HELLO, tools=[{"name": name, "input_schema": {}}])


@pytest.mark.parametrize(
    "tools",
    [
        [{"name": "a"}, {"name": "a"}],
        [{"name": "bash"}, {"type": "bash_20250124"}],
    ],
)
def test_two_tools_of_one_name_are_refused(tools):
    with pytest.raises(BadRequest) as caught:
        ask(HELLO, tools=tools)
    assert caught.value.error_code == "tool_name_conflict"


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"type": "auto"}, ToolChoice()),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            ToolChoice(ToolMode.AUTO, parallel=False),
        ),
        ({"type": "any"}, ToolChoice(ToolMode.REQUIRED)),
        ({"type": "tool", "name": "a"}, ToolChoice(ToolMode.NAMED, "a")),
        ({"type": "none"}, ToolChoice(ToolMode.NONE)),
        ({"type": "tool", "name": "web_search"}, None),
        (None, None),
    ],
)
def test_tool_choice(choice, found):
    tools = [{"name": "a"}, {"name": "web_search", "type": "web_search_20250305"}]
    assert ask(HELLO, tools=tools, tool_choice=choice).tool_choice == found


def test_any_tool_of_none_that_can_be_called_is_no_choice():
    tools = [{"name": "search", "type": "tool_search_tool_regex_20251119"}]
    found = ask(HELLO, tools=tools, tool_choice={"type": "any"})
    assert (found.tools, found.tool_choice) == ((), None)


@pytest.mark.parametrize("kind", ["web_search_20260318", "web_fetch_20250910"])
def test_a_request_for_what_only_the_vendors_servers_do_is_refused(kind):
    with pytest.raises(BadRequest, match=f"does not run {kind[:-9]}"):
        ask(HELLO, tools=[{"name": kind[:-9], "type": kind}])
    with pytest.raises(BadRequest, match=f"does not run {kind[:-9]}"):
        ask(HELLO, tools=[{"type": kind}])
    assert ask(HELLO, tools=[{"type": kind}, {"type": "new_20300101"}]).tools == ()


def test_counting_knows_no_such_refusal():
    tools = [{"name": "web_search", "type": "web_search_20250305"}]
    assert read_count({"model": "m", "messages": [HELLO], "tools": tools}).tools == ()


def test_counting_needs_no_limit_and_sees_the_same_prompt():
    body = {"model": "m", "messages": [HELLO], "system": "s", "tools": [{"name": "a"}]}
    counted = tokenize_body(read_count({**body, "max_tokens": "ignored", "stream": 5}), "m")
    asked = chat_body(read_messages({**body, "max_tokens": 5}), "m")
    assert counted == {key: asked[key] for key in counted}
    assert set(asked) - set(counted) == {"max_completion_tokens", "on_overflow", "stream"}


names = st.sampled_from(
    [
        "type",
        "text",
        "role",
        "content",
        "system",
        "user",
        "assistant",
        "tool_use",
        "tool_result",
        "id",
        "name",
        "input",
        "source",
        "thinking",
        "image",
        "document",
        "base64",
        "media_type",
        "data",
        "url",
        "tools",
        "max_tokens",
        "messages",
    ]
)
scalars = st.none() | st.booleans() | st.integers(-9, 99) | st.floats(allow_nan=False) | names
anything = st.recursive(
    scalars | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
kinds = st.sampled_from(
    [
        "text",
        "image",
        "document",
        "search_result",
        "thinking",
        "tool_use",
        "tool_result",
        "compaction",
        "new",
    ]
)
sources = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "text", "content", "file"])},
    optional={
        "media_type": st.sampled_from(["image/png", "text/plain", "application/pdf"]) | scalars,
        "data": st.sampled_from([PNG, "x"]) | scalars,
        "url": scalars,
        "content": anything,
    },
)
blocks = st.fixed_dictionaries(
    {"type": kinds},
    optional={
        "text": st.text(max_size=3) | anything,
        "source": sources | anything,
        "id": st.sampled_from(["a", "b"]),
        "tool_use_id": st.sampled_from(["a", "b"]),
        "name": st.sampled_from(["f", ""]),
        "input": st.dictionaries(names, anything, max_size=2) | anything,
        "thinking": st.text(max_size=3) | anything,
        "content": st.text(max_size=3) | anything,
    },
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=3) | st.lists(blocks, max_size=3) | anything,
    }
)
fields = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.integers(0, 99), "messages": st.lists(messages)},
    optional={
        "system": anything,
        "tools": anything,
        "tool_choice": anything,
        "thinking": anything,
        "output_config": anything,
        "metadata": anything,
        "stop_sequences": anything,
        "temperature": anything,
        "top_k": anything,
        "stream": st.booleans(),
    },
)


@many
@given(fields | st.dictionaries(names, anything, max_size=6))
def test_any_json_is_refused_as_a_bad_request_or_becomes_a_body_a_neuron_can_read(body):
    try:
        conversation = read_messages(body)
    except BadRequest:
        return
    sent = chat_body(conversation, "m")
    assert sent["messages"]
    assert json.loads(json.dumps(sent)) == sent


def test_many_turns_of_one_side_are_merged_in_linear_time():
    # Quadratic, this took half a minute.
    found = turns(*[{"role": "user", "content": "a"}] * 80_000)
    assert found == [("user", [Text("a")] * 80_000)]
