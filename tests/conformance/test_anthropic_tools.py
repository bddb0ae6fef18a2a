"""AT: Anthropic's tools, and what becomes of its blocks in the chat that a neuron gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conformance.checks import ANTHROPIC_TOOL, CHAT, MESSAGES, TOOL, Server, call, call_deltas, user
from fakes.images import png

ASK = [user("What is the weather in Paris?")]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png()}}
HELLO = {"type": "text", "text": "Hello"}


def tool_use(id_: str = "toolu_1", name: str = "get_weather", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": {"city": "Paris"}, **fields}


def result(id_: str = "toolu_1", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, **fields}


def loop(*answers: dict[str, Any], calls: int = 1) -> list[dict[str, Any]]:
    """A question, *calls* calls, and a turn of *answers*."""
    made = [tool_use(f"toolu_{n}") for n in range(1, calls + 1)]
    return [*ASK, {"role": "assistant", "content": made}, user(list(answers))]


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(b["name"], b["input"]) for b in message["content"] if b["type"] == "tool_use"]


def sent(server: Server, messages: list[dict[str, Any]]) -> list[Any]:
    """The messages that the neuron got."""
    server.message(messages=messages)
    found: list[Any] = server.sent()["messages"]
    return found


def test_at01_a_call_is_an_object(real: Server) -> None:
    fields = {"messages": ASK, "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}}
    for message in (real.message(**fields), real.accumulated(**fields)):
        assert message["stop_reason"] == "tool_use"
        ((name, arguments),) = calls_of(message)
        assert name == "get_weather"
        assert type(arguments["city"]) is str


def test_at02_choices(real: Server) -> None:
    fields = {"messages": ASK, "tools": [ANTHROPIC_TOOL]}
    named = real.message(tool_choice={"type": "tool", "name": "get_weather"}, **fields)
    assert calls_of(named)
    none = real.message(tool_choice={"type": "none"}, **fields)
    assert [block["type"] for block in none["content"]] == ["text"]
    body = real.message_body(tool_choice={"type": "tool", "name": "nobody"}, **fields)
    assert "not found in provided tools" in real.refused(MESSAGES, body)["message"]


def test_at03_one_call_at_most_where_asked(real: Server) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = real.message(messages=ASK, tools=[ANTHROPIC_TOOL], tool_choice=choice)
    assert len(calls_of(message)) == 1


def test_at04_tools_of_every_form_are_taken(scripted: Server) -> None:
    more = {
        "eager_input_streaming": True,
        "defer_loading": True,
        "strict": True,
        "input_examples": [{"city": "x"}],
        "allowed_callers": ["direct"],
        "cache_control": {"type": "ephemeral"},
    }
    tools = [
        {**ANTHROPIC_TOOL, "name": f"t{n}", **kind, **more}
        for n, kind in enumerate([{}, {"type": None}, {"type": "custom"}])
    ]
    scripted.message(tools=tools)
    assert [tool["function"]["name"] for tool in scripted.sent()["tools"]] == ["t0", "t1", "t2"]


def test_at05_tools_that_clients_run_have_a_schema(scripted: Server) -> None:
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "memory_20250818", "name": "memory"},
    ]
    scripted.answers({"tool_calls": [call("bash", '{"command": "ls"}')]}, "tool_calls")
    assert calls_of(scripted.message(tools=tools)) == [("bash", {"command": "ls"})]
    found = {tool["function"]["name"]: tool["function"] for tool in scripted.sent()["tools"]}
    assert set(found) == {"bash", "str_replace_based_edit_tool", "memory"}
    assert all(each["parameters"]["properties"] for each in found.values())


SERVER_TOOLS = ["web_search_20250305", "web_fetch_20250910", "code_execution_20260521"]


@pytest.mark.parametrize("kind", SERVER_TOOLS, ids="AT06-{}".format)
def test_at06_tools_of_the_vendors_servers_are_not_pretended(scripted: Server, kind: str) -> None:
    tool = {"type": kind, "name": kind.rpartition("_")[0]}
    error = scripted.refused(MESSAGES, scripted.message_body(tools=[tool]))
    assert error["message"] == (
        f"tools.0: this server does not run {tool['name']}; offer tools that the client runs"
    )
    scripted.message(tools=[tool, ANTHROPIC_TOOL])
    assert [each["function"]["name"] for each in scripted.sent()["tools"]] == ["get_weather"]


def test_at07_results_come_first_in_their_order(scripted: Server) -> None:
    messages = loop(
        result("toolu_2", content="two"), result("toolu_1", content="one"), HELLO, calls=2
    )
    found = sent(scripted, messages)
    assert [(m["role"], m["content"]) for m in found[2:]] == [
        ("tool", "one"),
        ("tool", "two"),
        ("user", "Hello"),
    ]


def test_at08_text_before_a_result_is_taken(scripted: Server) -> None:
    found = sent(scripted, loop(HELLO, result(content="one")))
    assert [m["role"] for m in found[2:]] == ["tool", "user"]


CONTENTS: dict[str, tuple[dict[str, Any], str]] = {
    "AT09-absent": ({}, ""),
    "AT09-empty": ({"content": ""}, ""),
    "AT09-text": ({"content": "a"}, "a"),
    "AT09-nothing": ({"content": []}, ""),
    "AT09-two": ({"content": [{"type": "text", "text": t} for t in "ab"]}, "a\nb"),
    "AT10": ({"content": "a", "is_error": True}, "Error: a"),
    "AT10-empty": ({"is_error": True}, "Error"),
}


@pytest.mark.parametrize(("fields", "text"), CONTENTS.values(), ids=CONTENTS.keys())
def test_a_result_of_every_form(scripted: Server, real: Server, fields: Any, text: str) -> None:
    messages = loop(result(**fields))
    assert sent(scripted, messages)[-1] == {
        "role": "tool",
        "tool_call_id": "toolu_1",
        "content": text,
    }
    assert real.message(messages=messages, tools=[ANTHROPIC_TOOL], max_tokens=1)


def test_at11_a_missing_result_is_made_up(scripted: Server) -> None:
    found = sent(scripted, loop(result("toolu_1", content="one"), calls=2))
    assert [m["content"] for m in found[2:]] == ["one", "(no result)"]


def test_at12_a_result_of_nothing_is_kept(scripted: Server) -> None:
    found = sent(scripted, [*ASK, user([result("nobody", content="x")])])
    assert [m.get("tool_call_id") for m in found] == ["nobody", None]


def test_at13_two_calls_of_one_id_are_taken(real: Server) -> None:
    made = {"role": "assistant", "content": [tool_use(), tool_use()]}
    messages = [*ASK, made, user([result(content="x")])]
    assert real.message(messages=messages, tools=[ANTHROPIC_TOOL], max_tokens=1)


@pytest.mark.parametrize("given", ["text", [1]], ids=["AT14-text", "AT14-array"])
def test_at14_an_input_is_an_object(scripted: Server, given: Any) -> None:
    messages = [*ASK, {"role": "assistant", "content": [tool_use(input=given)]}, user()]
    error = scripted.refused(MESSAGES, scripted.message_body(messages=messages))
    assert error["message"].startswith("messages.1.content.0.input")


def test_at15_ids_of_other_vendors_pass(scripted: Server) -> None:
    made = {"role": "assistant", "content": [tool_use("call.1:a")]}
    found = sent(scripted, [*ASK, made, user([result("call.1:a", content="x")])])
    assert found[-2]["tool_calls"][0]["id"] == found[-1]["tool_call_id"] == "call.1:a"


def test_at16_an_assistants_blocks_keep_their_order(scripted: Server) -> None:
    after = {"type": "text", "text": "after"}
    made = {"role": "assistant", "content": [HELLO, tool_use(), after]}
    found = sent(scripted, [*ASK, made, user([result(content="x")])])
    said = [m for m in found if m["role"] == "assistant"]
    assert said[0]["content"] == "Hello"
    assert said[0]["tool_calls"]
    assert said[1]["content"] == "after"


@pytest.mark.parametrize("arguments", ['{"a": ', "nonsense", "[1]"], ids="AT17-{}".format)
def test_at17_a_malformed_call_is_told_as_text(scripted: Server, arguments: str) -> None:
    scripted.answers({"tool_calls": [call("f", arguments)]}, "tool_calls")
    message = scripted.message(tools=[ANTHROPIC_TOOL])
    scripted.streams(*call_deltas("f", arguments), finish="tool_calls")
    for found in (message, scripted.accumulated(tools=[ANTHROPIC_TOOL])):
        assert [block["type"] for block in found["content"]] == ["text"]
        assert arguments in json.loads(found["content"][0]["text"])["arguments"]
        assert found["stop_reason"] == "end_turn"


def test_at18_a_call_cut_off_is_dropped(scripted: Server) -> None:
    scripted.streams({"content": "I look."}, *call_deltas("f", '{"a": '), finish="length")
    message = scripted.accumulated(tools=[ANTHROPIC_TOOL])
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["stop_reason"] == "max_tokens"


def test_at19_the_same_conversation_is_the_same_prompt(scripted: Server, real: Server) -> None:
    fields: dict[str, Any] = {"tools": [ANTHROPIC_TOOL], "system": "Be brief."}
    messages = loop(result(content="sunny"), HELLO)
    scripted.message(messages=messages, **fields)
    chat = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("get_weather", '{"city":"Paris"}', id_="toolu_1")],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        user("Hello"),
    ]
    assert scripted.sent()["messages"] == chat
    assert scripted.sent()["tools"] == [TOOL]
    body = {"model": real.model, "messages": chat, "tools": [TOOL], "max_tokens": 1}
    counted = real.count(messages=messages, **fields)
    assert real.ok(CHAT, body)["usage"]["prompt_tokens"] == counted


def test_at20_each_turn_reads_what_the_last_one_wrote(real: Server) -> None:
    system = "Answer with care. " * 30 + "AT20"
    messages: list[dict[str, Any]] = []
    read = []
    for number in range(4):
        messages += [user(f"Question {number} " * 12)]
        usage = real.message(messages=messages, system=system, max_tokens=1)["usage"]
        read.append(usage["cache_read_input_tokens"])
        made = [{"type": "thinking", "thinking": "hm", "signature": "x"}, tool_use(f"t{number}")]
        messages += [
            {"role": "assistant", "content": made},
            user([result(f"t{number}", content="sunny " * 20)]),
            {"role": "assistant", "content": "It is sunny. " * 10},
        ]
    assert read == sorted(read)
    assert read[1] > 0
    assert read[-1] > read[1]


@pytest.mark.parametrize("name", ["a.b", "wörd", "x" * 129], ids=["AT21-dot", "AT21-uni", "AT21"])
def test_at21_names_of_tools(scripted: Server, name: str) -> None:
    body = scripted.message_body(tools=[{**ANTHROPIC_TOOL, "name": name}])
    error = scripted.refused(MESSAGES, body)
    assert error["message"].startswith("tools.0.name: String should match pattern")


def test_at22_two_tools_of_one_name(scripted: Server) -> None:
    body = scripted.message_body(tools=[ANTHROPIC_TOOL, ANTHROPIC_TOOL])
    error = scripted.refused(MESSAGES, body)
    assert error["message"] == "tools: Tool names must be unique."
    assert error["details"] == {"error_code": "tool_name_conflict"}
