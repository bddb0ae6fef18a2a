"""Chat requests as conversations, and the same conversation through both of the older dialects."""

from __future__ import annotations

import itertools
import json

import attrs
import pytest
from fakes.dialect_writers import as_chat, as_messages
from fakes.images import data_url, png_bytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.translate.anthropic import read_messages
from cortex.translate.chat import chat_body
from cortex.translate.chat_request import read_chat
from cortex.translate.conversation import (
    Conversation,
    Document,
    Image,
    Overflow,
    Reasoning,
    Role,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.wire import json as wire_json

many = settings(max_examples=50, deadline=None)
URL = data_url(png_bytes())
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(*messages, **fields) -> Conversation:
    return read_chat({"model": "m", "messages": list(messages), **fields})


def user(content="Hi"):
    return {"role": "user", "content": content}


def said(content=None, **fields):
    return {"role": "assistant", "content": content, **fields}


def call(id_="a", name="f", arguments="{}"):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content, id_="a"):
    return {"role": "tool", "tool_call_id": id_, "content": content}


# What is read


def test_the_least_request():
    found = read(user())
    assert (found.model, found.system) == ("m", ())
    assert found.turns == (Turn(Role.USER, (Text("Hi"),)),)
    assert not found.continues


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_leads_is_the_system_prompt_and_the_rest_stays_in_its_place(role):
    note = {"role": role, "content": [{"type": "text", "text": "s"}]}
    found = read(note, user(), note, user())
    assert found.system == (Text("s"),)
    assert [turn.role for turn in found.turns] == [Role.USER, Role.SYSTEM, Role.USER]


def test_blocks_keep_their_order():
    found = read(
        user([{"type": "text", "text": "see"}, IMAGE]),
        said("I look.", reasoning_content="hm", tool_calls=[call()]),
        result("sunny"),
        user("and?"),
    )
    assert found.turns == (
        Turn(Role.USER, (Text("see"), Image(URL))),
        Turn(Role.ASSISTANT, (Thinking("hm"), Text("I look."), ToolUse("a", "f", "{}"))),
        Turn(Role.USER, (ToolResult("a", (Text("sunny"),)), Text("and?"))),
    )
    assert found.turns[0].blocks[1].path == "messages[0].content[1]"


def test_neighbours_of_one_side_are_one_turn():
    found = read(user("a"), user("b"), said("c"), said("d"), user("e"))
    assert [len(turn.blocks) for turn in found.turns] == [2, 2, 1]


def test_the_legacy_fields_are_calls_and_results():
    legacy = {"name": "f", "arguments": '{"a":1}'}
    found = read(user(), said(function_call=legacy), {"role": "function", "name": "f", **user("1")})
    assert found.turns[1].blocks == (ToolUse("call_f", "f", '{"a":1}'),)
    role = {"role": "function", "name": "f", "content": "1"}
    found = read(user(), said(function_call=legacy), role)
    assert found.turns[2].blocks == (ToolResult("call_f", (Text("1"),)),)


@pytest.mark.parametrize("empty", ["", None, []])
def test_an_assistant_that_said_nothing_still_had_its_turn(empty):
    found = read(user(), said(empty), user())
    assert [turn.role for turn in found.turns] == [Role.USER, Role.ASSISTANT, Role.USER]


def test_parts_that_have_no_place_become_a_note():
    found = read(user([{"type": "input_audio", "input_audio": {}}, {"type": "image_url"}]))
    assert [block.text for block in found.turns[0].blocks] == [
        "[content of type input_audio is not supported here]",
        "[content of type image_url is not supported here]",
    ]


def test_what_comes_with_the_messages():
    found = read(
        user(),
        tools=[TOOL, {"type": "web_search"}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"name": "f"}]},
        parallel_tool_calls=False,
        max_tokens=5,
        max_completion_tokens=3,
        stop="x",
        response_format={"type": "json_object"},
        reasoning_effort="low",
        on_overflow="error",
    )
    assert found.tools == (Tool("f", None, {"type": "object"}),)
    assert found.tool_choice == ToolChoice(ToolMode.REQUIRED, None, False, ("f",))
    assert (found.max_tokens, found.sampling.stop) == (3, ("x",))
    assert (found.schema, found.overflow) == ({"type": "object"}, Overflow.ERROR)
    assert found.reasoning.effort == "low"


def test_a_shape_that_is_none_is_refused():
    with pytest.raises(BadRequest):
        read()


# The same conversation through every dialect

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
names = st.sampled_from(["f", "g", "get_weather"])
ids = st.sampled_from(["a", "b", "toolu_1"])
texts = words.map(Text)
images = st.just(Image(URL))
documents = st.builds(Document, words, st.none() | words, st.none() | words)
documents |= st.builds(Document, words, st.none() | words, st.none(), words)
arguments = st.dictionaries(words, st.integers(-9, 9) | words | st.none(), max_size=2).map(
    lambda value: wire_json.dumps(value).decode()
)
plain = texts | images | documents
results = st.builds(ToolResult, ids, st.lists(plain, max_size=2).map(tuple), st.booleans())
calls = st.builds(ToolUse, ids, names, arguments)
KINDS = {
    Role.USER: st.lists(plain | results, max_size=4),
    Role.ASSISTANT: st.lists(texts | words.map(Thinking) | calls, min_size=1, max_size=4),
    Role.SYSTEM: st.lists(texts, min_size=1, max_size=2),
}


@st.composite
def conversations(draw):
    turns: list[Turn] = []
    for role in draw(st.lists(st.sampled_from(Role), min_size=1, max_size=6)):
        if not turns or role is not turns[-1].role:
            turns.append(Turn(role, tuple(draw(KINDS[role]))))
    offered = draw(st.lists(names, unique=True))
    parameters = {"type": "object", "properties": {}}
    enabled = draw(st.none() | st.booleans())
    return Conversation(
        model="m",
        system=tuple(draw(st.lists(texts, max_size=2))),
        turns=tuple(turns),
        tools=tuple(Tool(name, draw(st.none() | words), parameters) for name in offered),
        tool_choice=draw(choices(offered)),
        reasoning=Reasoning(
            enabled=enabled,
            budget_tokens=draw(st.none() | st.integers(1, 9)) if enabled else None,
            effort=draw(st.none() | st.sampled_from(["low", "high", "xhigh"])),
        ),
        sampling=Sampling(
            draw(st.none() | st.floats(0, 2)),
            draw(st.none() | st.just(0.5)),
            draw(st.none() | st.integers(0, 9)),
            tuple(draw(st.lists(words, max_size=2))),
        ),
        max_tokens=draw(st.integers(10, 99)),
        schema=draw(st.none() | st.just({"type": "object"})),
        overflow=Overflow.ERROR,
        stream=draw(st.booleans()),
        user=draw(st.none() | words),
    )


def choices(offered):
    parallel = st.sampled_from([None, False])
    found = st.none() | st.builds(ToolChoice, st.just(ToolMode.AUTO), st.none(), parallel)
    if not offered:
        return st.none()
    found |= st.just(ToolChoice(ToolMode.NONE))
    found |= st.builds(ToolChoice, st.just(ToolMode.REQUIRED), st.none(), parallel)
    return found | st.builds(
        ToolChoice, st.just(ToolMode.NAMED), st.sampled_from(offered), parallel
    )


@many
@given(conversations())
def test_a_conversation_is_the_same_body_through_both_dialects(conversation):
    wanted = chat_body(conversation, "m")
    through_chat = read_chat(json.loads(json.dumps(as_chat(conversation))))
    through_messages = read_messages(json.loads(json.dumps(as_messages(conversation))))
    assert chat_body(through_chat, "m") == wanted
    assert chat_body(through_messages, "m") == wanted


@many
@given(conversations())
def test_read_from_messages_it_is_the_same_conversation(conversation):
    found = read_messages(as_messages(conversation))
    assert found.turns == conversation.turns
    assert found.system == conversation.system
    assert attrs.evolve(found, turns=(), system=()) == attrs.evolve(
        conversation, turns=(), system=()
    )


@many
@given(conversations())
def test_what_is_sent_upstream_reads_as_what_it_says(conversation):
    for turn in conversation.turns:  # of two calls of one id nobody knows which a result answers
        made = [block.id for block in turn.blocks if isinstance(block, ToolUse)]
        assume(len(set(made)) == len(made))
    sent = chat_body(conversation, "m")
    assert chat_body(read_chat(sent), "m") == sent


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "x"])
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file", "refusal", "new"])},
    optional={"text": words | scalars, "image_url": scalars | st.just({"url": URL})},
)
contents = scalars | words | st.lists(parts, max_size=3)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"]),
        "content": contents,
    },
    optional={
        "name": scalars,
        "tool_call_id": scalars,
        "reasoning": scalars,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"function": st.fixed_dictionaries({"name": names, "arguments": words})},
                optional={"id": scalars, "type": scalars},
            ),
            max_size=2,
        ),
        "function_call": st.fixed_dictionaries({"name": names, "arguments": words}),
    },
)


@many
@given(st.lists(messages, min_size=1, max_size=6))
def test_whatever_is_legal_becomes_a_conversation_that_can_be_sent(sent):
    try:
        found = read(*sent)
    except BadRequest:
        return
    body = chat_body(found, "m")
    assert body["messages"]
    roles = [turn.role for turn in found.turns]
    assert all(one is not other for one, other in itertools.pairwise(roles))
