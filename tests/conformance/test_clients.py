"""CE: what real clients send, written from their documented shapes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conformance.checks import CHAT, COMPLETIONS, MESSAGES, MODELS, Server, call_deltas, told, user
from fakes.anthropic_client import accumulate
from fakes.chunk_client import follow
from fakes.images import data_url, png, png_bytes

CLAUDE = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-1",
    "x-app": "cli",
    "user-agent": "claude-cli/2.1.330 (external, cli)",
    "x-claude-code-session-id": "7a3c",
    "authorization": "Bearer token",
    "x-api-key": "key",
}
BETA = f"{MESSAGES}?beta=true"
MARK = {"cache_control": {"type": "ephemeral"}}
TOOLS = [
    {
        "name": f"Tool{n}",
        "description": "Does what it is told. " * 10,
        "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"path": {"type": "string", "description": "A path"}},
            "required": ["path"],
            "additionalProperties": False,
        },
        "eager_input_streaming": True,
    }
    for n in range(20)
]


def claude_turn(**fields: Any) -> dict[str, Any]:
    """The first request of a session."""
    billing = "x-anthropic-billing-header: cc_version=2.1.330.abc; cc_entrypoint=cli; cch=00a1b;"
    return {
        "model": "claude-4",
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": billing},
            {"type": "text", "text": "You are a coding agent. ", **MARK},
            {"type": "text", "text": "Follow the instructions. " * 1000, **MARK},
        ],
        "messages": [
            user([{"type": "text", "text": "Fix the bug", **MARK}]),
            {"role": "system", "content": [{"type": "text", "text": "The date is 2026-11-27."}]},
        ],
        "tools": TOOLS,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "7a3c"})},
        "diagnostics": {"previous_message_id": None},
        **fields,
    }


def title_request() -> dict[str, Any]:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    return {
        "model": "claude-4",
        "max_tokens": 64,
        "temperature": 1,
        "system": [{"type": "text", "text": "Make a title."}],
        "messages": [user("Fix the bug")],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }


def test_ce01_ce02_claude_codes_first_turn_and_its_title_beside_it(scripted: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        turn = pool.submit(scripted.post, BETA, claude_turn(), headers=CLAUDE)
        title = pool.submit(scripted.post, BETA, title_request(), headers=CLAUDE)
        message = accumulate(turn.result().content)
        assert title.result().status_code == 200, title.result().text
    assert message["model"] == "claude-4"
    assert turn.result().headers["anthropic-version"] == "2023-06-01"
    bodies = [each.json for each in scripted.gateway.neuron.requests if each.path == CHAT]
    sent = next(body for body in bodies if len(body.get("tools", ())) == 20)
    assert sent["messages"][0]["content"].startswith("You are a coding agent.")
    assert [m["role"] for m in sent["messages"]] == ["system", "user", "system"]
    assert sent["user"] == claude_turn()["metadata"]["user_id"]


def test_ce03_claude_codes_search_is_told_that_there_is_none(scripted: Server) -> None:
    body = {
        "model": "claude-4",
        "max_tokens": 4096,
        "messages": [user("Perform a web search for the query: cortex")],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
    }
    error = told(scripted.post(BETA, body, headers=CLAUDE), 400, anthropic=True)
    assert "does not run web_search" in error["message"]


def test_ce04_five_results_with_an_image_and_an_error(scripted: Server) -> None:
    calls = [
        {"type": "tool_use", "id": f"toolu_{n}", "name": "Tool1", "input": {"path": f"/{n}"}}
        for n in range(5)
    ]
    image = {"type": "base64", "media_type": "image/png", "data": png()}
    contents: list[Any] = [
        *("zero", [{"type": "text", "text": "one"}], [{"type": "image", "source": image}]),
        *("three", "No such file"),
    ]
    results = [
        {"type": "tool_result", "tool_use_id": f"toolu_{n}", "content": content}
        for n, content in enumerate(contents)
    ]
    results[4]["is_error"] = True
    messages = [user("Read"), {"role": "assistant", "content": calls}, user(results)]
    response = scripted.post(BETA, claude_turn(messages=messages), headers=CLAUDE)
    assert accumulate(response.content)
    sent = scripted.sent()["messages"][3:]
    assert [m["tool_call_id"] for m in sent] == [f"toolu_{n}" for n in range(5)]
    assert [m["content"] for m in sent] == [
        "zero",
        "one",
        [{"type": "image_url", "image_url": {"url": data_url(png_bytes())}}],
        "three",
        "Error: No such file",
    ]


def test_ce06_probes_are_answered(scripted: Server) -> None:
    assert scripted.client.head("/").status_code == 200
    assert scripted.client.head("/api/hello").status_code == 404


def test_ce08_after_a_cut_stream_the_whole_answer_is_there(scripted: Server) -> None:
    scripted.streams({"content": "Hel"}, finish=None)
    cut = scripted.post(BETA, claude_turn(), headers=CLAUDE)
    assert b"event: error" in cut.content
    assert b"message_stop" not in cut.content
    scripted.gateway.neuron.scripts.clear()
    again = scripted.post(BETA, claude_turn(stream=False), headers=CLAUDE)
    assert again.json()["stop_reason"] == "end_turn"


def test_ce12_zed(scripted: Server) -> None:
    scripted.streams(*call_deltas("f", '{"path": "x"}'), finish="tool_calls")
    body = scripted.body(
        stream=True,
        max_completion_tokens=8192,
        parallel_tool_calls=False,
        prompt_cache_key="thread-1",
        stop=[],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        stream_options={"include_usage": True},
    )
    answer = follow(scripted.gateway.stream(CHAT, body), usage=True)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_ce13_continues_infill_is_answered_or_refused_clearly(real: Server) -> None:
    body = {"model": real.model, "prompt": "def f(", "suffix": "return x", "max_tokens": 8}
    assert real.refused(COMPLETIONS, body)["param"] == "suffix"


def test_ce14_clines_image_is_told_what_the_model_lacks(real: Server) -> None:
    url = data_url(png_bytes())
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    error = real.refused(CHAT, real.body(messages=[user(content)], stream=True))
    assert error["param"] == "messages[0].content[1]"


def test_ce15_open_webui_asks_on_the_side(real: Server) -> None:
    side = {"max_tokens": 50, "stream": False, "chat_template_kwargs": {"enable_thinking": False}}

    def ask(fields: dict[str, Any]) -> Any:
        return real.chat(**fields)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, [{}, side, side, side]))


def test_ce16_librechat_lists_and_asks_for_a_title(real: Server) -> None:
    ids = [model["id"] for model in real.client.get(MODELS).json()["data"]]
    assert real.model in ids
    assert real.chat(user="66f", presence_penalty=0, frequency_penalty=0, max_tokens=4)


def test_ce17_llms_schema_without_strict(real: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    body = real.chat(response_format=wanted, max_tokens=60)
    assert '"a"' in body["choices"][0]["message"]["content"]


def test_ce18_aider_needs_a_finish(real: Server) -> None:
    chunks = real.chunks(messages=[{"role": "system", "content": "Edit."}, user()])
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_ce19_guidellm(real: Server) -> None:
    assert real.client.get("/health").status_code == 200
    content = [{"type": "text", "text": "word " * 20}]
    for _ in range(5):
        body = real.body(
            messages=[user(content)],
            max_completion_tokens=4,
            ignore_eos=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        answer = follow(real.gateway.stream(CHAT, body), usage=True)
        assert answer.usage["completion_tokens"] == 4
