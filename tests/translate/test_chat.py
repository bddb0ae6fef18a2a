from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.translate.chat import NO_RESULT, chat_body, tokenize_body
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
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest, TokenizeRequest

many = settings(max_examples=100, deadline=None)
HELLO = Turn(Role.USER, (Text("hello"),))


def user(*blocks):
    return Turn(Role.USER, blocks)


def assistant(*blocks):
    return Turn(Role.ASSISTANT, blocks)


def messages(*turns, **fields):
    return chat_body(Conversation(model="asked", turns=turns, **fields), "m")["messages"]


def call(id_, name="f"):
    return ToolUse(id_, name, "{}")


def tool(id_, content):
    return {"role": "tool", "tool_call_id": id_, "content": content}


def test_the_least_body():
    assert chat_body(Conversation(model="asked", turns=(HELLO,)), "m") == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "on_overflow": "clamp",
        "stream": False,
    }


def test_the_fullest_body():
    body = chat_body(
        Conversation(
            model="asked",
            system=(Text("a"), Text("b")),
            turns=(HELLO,),
            tools=(Tool("f", "does", {"type": "object"}, True), Tool("g", None, {})),
            tool_choice=ToolChoice(ToolMode.NAMED, "f", parallel=False),
            reasoning=Reasoning(enabled=True, budget_tokens=5, effort="low"),
            sampling=Sampling(0.5, 0.9, 40, ("A",)),
            max_tokens=9,
            schema={"type": "object"},
            overflow=Overflow.ERROR,
            stream=True,
            user="u",
        ),
        "m",
    )
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "hello"},
        ],
        "tools": [
            {"type": "function", "function": {**function, "strict": True}},
            {"type": "function", "function": {"name": "g", "parameters": {}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking": {"budget_tokens": 5},
        "reasoning_effort": "low",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["A"],
        "user": "u",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
        "parallel_tool_calls": False,
        "on_overflow": "error",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    structure(body, ChatRequest)


def test_results_come_first_in_the_order_of_the_calls():
    found = messages(
        HELLO,
        assistant(call("a"), call("b")),
        user(Text("and"), ToolResult("b", (Text("2"),)), ToolResult("a", (Text("1"),))),
    )
    assert found[2:] == [tool("a", "1"), tool("b", "2"), {"role": "user", "content": "and"}]


def test_calls_without_a_result_get_one_in_their_place():
    found = messages(HELLO, assistant(call("a"), call("b")), user(ToolResult("b", (Text("2"),))))
    assert found[2:] == [tool("a", NO_RESULT), tool("b", "2")]
    found = messages(HELLO, assistant(call("a")))
    assert found[2:] == [tool("a", NO_RESULT)]
    found = messages(HELLO, assistant(call("a")), user(Text("never mind")))
    assert found[2:] == [tool("a", NO_RESULT), {"role": "user", "content": "never mind"}]


def test_results_of_unknown_calls_are_kept_after_the_known():
    found = messages(HELLO, assistant(call("a")), user(ToolResult("x"), ToolResult("a")))
    assert [message["tool_call_id"] for message in found[2:]] == ["a", "x"]


def test_results_are_found_behind_a_system_message():
    found = messages(
        HELLO, assistant(call("a")), Turn(Role.SYSTEM, (Text("mind"),)), user(ToolResult("a"))
    )
    assert found[2:] == [{"role": "system", "content": "mind"}, tool("a", "")]


def test_results_of_every_form():
    image = Image("data:image/png;base64,AA")
    parts = [{"type": "image_url", "image_url": {"url": image.url}}]
    found = messages(
        user(
            ToolResult("a"),
            ToolResult("b", (Text("x"), Text("y"))),
            ToolResult("c", (Text("x"),), is_error=True),
            ToolResult("d", (), is_error=True),
            ToolResult("e", (Text("see"), image)),
            ToolResult("f", (image,), is_error=True),
        )
    )
    assert [message["content"] for message in found] == [
        "",
        "x\ny",
        "Error: x",
        "Error",
        [{"type": "text", "text": "see"}, *parts],
        [{"type": "text", "text": "Error:"}, *parts],
    ]


def test_an_assistants_blocks_keep_their_order():
    found = messages(
        HELLO,
        assistant(
            Thinking("t1"), Text("a"), call("x"), call("y"), Text("b"), Thinking("t2"), call("z")
        ),
    )
    told = [
        (each.get("reasoning_content"), each["content"], [c["id"] for c in each["tool_calls"]])
        if "tool_calls" in each
        else (each.get("reasoning_content"), each["content"], [])
        for each in found
        if each["role"] == "assistant"
    ]
    assert told == [("t1", "a", ["x", "y"]), (None, "b", []), ("t2", None, ["z"])]


def test_a_calls_form():
    found = messages(HELLO, assistant(ToolUse("a", "f", '{"b":1}')))
    assert found[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"b":1}'}}
        ],
    }


def test_a_prefill_is_continued_and_nothing_else_is():
    def continued(*turns):
        return chat_body(Conversation(model="asked", turns=turns), "m").get(
            "continue_final_message"
        )

    body = chat_body(Conversation(model="asked", turns=(HELLO, assistant(Text("{")))), "m")
    assert body["messages"][-1] == {"role": "assistant", "content": "{"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert not continued(HELLO)
    assert not continued(HELLO, assistant(call("a")))
    assert not continued(HELLO, assistant(Thinking("hm")))
    assert not continued(HELLO, assistant(Text("a")), Turn(Role.SYSTEM, (Text("s"),)))


def test_documents_are_inlined():
    found = messages(user(Document("body", "T", "C", "S"), Text("sum up")))
    assert found[0]["content"] == (
        "<document>\ntitle: T\nsource: S\ncontext: C\nbody\n</document>\nsum up"
    )


def test_images_make_parts_in_order():
    found = messages(user(Text("a"), Image("data:x"), Text("b")))
    assert [part["type"] for part in found[0]["content"]] == ["text", "image_url", "text"]


def test_a_prewarm_asks_for_the_least():
    conversation = Conversation(model="asked", turns=(HELLO,), max_tokens=0)
    assert conversation.prewarm
    assert chat_body(conversation, "m")["max_completion_tokens"] == 1


def test_the_choice_of_no_tools_is_left_out():
    conversation = Conversation(model="m", turns=(HELLO,), tool_choice=ToolChoice(parallel=False))
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(chat_body(conversation, "m"))


def test_the_longest_tool_name_of_any_dialect_is_taken():
    tools = (Tool("x" * 128, None, {}),)
    body = chat_body(Conversation(model="m", turns=(HELLO,), tools=tools), "m")
    assert structure(body, ChatRequest).tools is not None


texts = st.text(max_size=4)
ids = st.sampled_from(["a", "b", "c"])
plain = st.builds(Text, texts) | st.builds(Document, texts, texts)
results = st.builds(ToolResult, ids, st.lists(plain, max_size=2).map(tuple), st.booleans())
told = st.builds(Text, texts) | st.builds(Thinking, texts)
told |= st.builds(ToolUse, ids, st.just("f"), st.just("{}"))
every_turn = st.one_of(
    st.builds(Turn, st.just(Role.USER), st.lists(plain | results, max_size=4).map(tuple)),
    st.builds(Turn, st.just(Role.ASSISTANT), st.lists(told, max_size=4).map(tuple)),
    st.builds(Turn, st.just(Role.SYSTEM), st.lists(st.builds(Text, texts), min_size=1).map(tuple)),
)
conversations = st.builds(
    Conversation,
    model=st.just("m"),
    turns=st.lists(every_turn, max_size=5).map(tuple),
    stream=st.booleans(),
    max_tokens=st.none() | st.integers(0, 9),
)


@many
@given(conversations)
def test_every_conversation_is_a_request_that_a_neuron_takes(conversation):
    structure(chat_body(conversation, "m"), ChatRequest)
    structure(tokenize_body(conversation, "m"), TokenizeRequest)


@many
@given(conversations)
def test_every_call_is_followed_by_a_result_of_its_own(conversation):
    sent = chat_body(conversation, "m")["messages"]
    for index, message in enumerate(sent):
        asked = [each["id"] for each in message.get("tool_calls", ())]
        answered = [each["tool_call_id"] for each in sent[index:] if each["role"] == "tool"]
        assert set(asked) <= set(answered)


@many
@given(conversations, every_turn)
def test_a_longer_conversation_begins_like_the_shorter(conversation, turn):
    # What was sent stays a prefix of what is sent next: the prefix cache lives by it.
    if not conversation.turns or turn.role is Role.USER:
        return
    first = attrs.evolve(conversation, turns=(*conversation.turns, HELLO))
    second = attrs.evolve(first, turns=(*first.turns, turn, HELLO))
    short, long = chat_body(first, "m")["messages"], chat_body(second, "m")["messages"]
    assert long[: len(short)] == short
