"""A conversation, written as a Responses request and read again, makes the same prompt."""

from __future__ import annotations

import json

from fakes.images import data_url, png_bytes
from fakes.responses_client import accumulate
from fakes.responses_writer import write
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.translate.chat import chat_body, tokenize_body
from cortex.translate.conversation import (
    Conversation,
    Document,
    Finished,
    FinishReason,
    Image,
    Reasoning,
    Role,
    Sampling,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCallDelta,
    ToolCallStart,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.translate.responses import read_count, read_response
from cortex.translate.responses_items import ItemWriter
from cortex.translate.responses_object import response_for
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.wire import json as wire_json

many = settings(max_examples=100, deadline=None)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
names = st.sampled_from(["f", "g", "apply_patch"])
ids = st.sampled_from(["call_1", "call_2", "c"])
texts = words.map(Text)
images = st.just(Image(data_url(png_bytes())))
documents = st.builds(Document, words, title=st.none() | st.just("notes.txt"))
arguments = (
    st.dictionaries(words, st.integers(-9, 9) | words | st.none(), max_size=2)
    | st.builds(lambda text: {"input": text}, words)
).map(lambda value: wire_json.dumps(value).decode())
calls = st.builds(ToolUse, ids, names, arguments)
results = st.builds(ToolResult, ids, st.lists(texts | images | documents, max_size=3).map(tuple))
assistants = st.lists(texts | words.map(Thinking) | calls, min_size=1, max_size=4)
users = st.lists(texts | images | documents | results, max_size=4)
numbers = st.none() | st.sampled_from([0.25, 0.5, 1.0])
samplings = st.builds(
    Sampling,
    temperature=numbers,
    top_p=numbers,
    top_k=st.none() | st.just(40),
    min_p=numbers,
    presence_penalty=numbers,
    frequency_penalty=numbers,
    repetition_penalty=numbers,
    seed=st.none() | st.just(7),
)
systems = st.lists(texts, min_size=1, max_size=2)


@st.composite
def conversations(draw):
    """In the form in which dialects are read: the leading system's texts apart, neighbours of one
    role merged."""
    roles = draw(st.lists(st.sampled_from(Role), max_size=6))
    kinds = {Role.USER: users, Role.ASSISTANT: assistants, Role.SYSTEM: systems}
    turns: list[Turn] = []
    for role in roles:
        if role is (turns[-1].role if turns else Role.SYSTEM):
            continue
        turns.append(Turn(role, tuple(draw(kinds[role]))))
    tools = tuple(
        Tool(name, draw(st.none() | words), {"type": "object", "properties": {}}, draw(st.none()))
        for name in draw(st.lists(names, unique=True))
    )
    return Conversation(
        model="asked",
        system=tuple(draw(st.lists(texts, max_size=3))),
        turns=tuple(turns) or (Turn(Role.USER, (Text("Hi"),)),),
        tools=tools,
        tool_choice=draw(choices_among([tool.name for tool in tools])),
        reasoning=Reasoning(effort=draw(st.none() | st.sampled_from(["none", "low", "high"]))),
        sampling=draw(samplings),
        max_tokens=draw(st.none() | st.integers(1, 99)),
        schema=draw(st.none() | st.just({"type": "object"})),
        continues=False,
        stream=draw(st.booleans()),
        user=draw(st.none() | words),
    )


def choices_among(names: list[str]):
    parallel = st.none() | st.booleans()
    modes = [ToolMode.AUTO, ToolMode.NONE]
    found = st.none() | st.builds(ToolChoice, st.sampled_from(modes), parallel=parallel)
    if not names:
        return found
    allowed = st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)
    either = st.sampled_from([ToolMode.AUTO, ToolMode.REQUIRED])
    return (
        found
        | st.builds(ToolChoice, st.just(ToolMode.REQUIRED), parallel=parallel)
        | st.builds(ToolChoice, st.just(ToolMode.NAMED), st.sampled_from(names), parallel)
        | st.builds(ToolChoice, either, st.none(), parallel, allowed)
    )


@many
@given(conversations(), st.data())
def test_what_is_written_is_read(conversation, data):
    body = write(conversation, lambda: data.draw(st.booleans()))
    found = read_response(json.loads(json.dumps(body))).conversation
    assert found == conversation
    assert chat_body(found, "m") == chat_body(conversation, "m")


@many
@given(conversations(), st.data())
def test_counting_sees_the_same_prompt(conversation, data):
    body = write(conversation, lambda: data.draw(st.booleans()))
    assert tokenize_body(read_count(body), "m") == tokenize_body(conversation, "m")


CUSTOM = {"type": "custom", "name": "apply_patch"}
spoken = words.map("w{}".format)  # more than white space, which alone becomes no item
SAID = st.lists(
    st.tuples(st.just("text"), spoken)
    | st.tuples(st.just("thinking"), spoken)
    | st.tuples(st.just("f"), arguments)
    | st.tuples(st.just("apply_patch"), words),
    max_size=5,
)


@many
@given(SAID)
def test_an_answer_that_the_client_sends_back_is_what_the_model_said(said):
    """What one turn's stream told is the next turn's history: nothing is lost on the way."""
    body = {
        "model": "m",
        "input": [{"role": "user", "content": "Hi"}],
        "include": ["reasoning.encrypted_content"],
        "tools": [CUSTOM],
    }
    asked = read_response(body)
    writer = ItemWriter("resp_1", custom=asked.tools.custom, sealed=asked.sealed)
    live = ResponsesEncoder(response_for(asked, "resp_1", 1), writer, lambda: 2)
    events, expected = _events(said)
    output = accumulate(live.feed_all([*events, Finished(FinishReason.STOP)]))["output"]
    for item in output:
        item.pop("content" if item["type"] == "reasoning" else "status", None)  # as Codex does
    again = read_response({**body, "input": [*body["input"], *output]}).conversation
    assert _merged(again.turns[1].blocks if len(again.turns) > 1 else ()) == expected


def _events(said):
    events, expected = [], []
    for index, (kind, text) in enumerate(said):
        if kind == "text":
            events.append(TextDelta(text))
            expected.append(Text(text))
        elif kind == "thinking":
            events.append(ThinkingDelta(text))
            expected.append(Thinking(text))
        else:
            if kind == "apply_patch":
                text = wire_json.dumps({"input": text}).decode()
            events += [ToolCallStart(index, f"call_{index}", kind), ToolCallDelta(index, text)]
            expected.append(ToolUse(f"call_{index}", kind, text))
    return events, _merged(expected)


def _merged(blocks):
    """Neighbouring texts as one."""
    found = []
    for block in blocks:
        if found and type(found[-1]) is type(block) and not isinstance(block, ToolUse):
            found[-1] = type(block)(found[-1].text + block.text)
        else:
            found.append(block)
    return found
