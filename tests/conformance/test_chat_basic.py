"""CB: chat completions, the basics, with the real engine and a small model."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.checks import CHAT, TOOL, Server, user
from fakes.images import data_url, png_bytes

LONG = "Cortex serves many models on few machines. " * 12
EVERYTHING: dict[str, Any] = {
    "audio": None,
    "frequency_penalty": -2,
    "logit_bias": {"7": 0},
    "logprobs": True,
    "max_completion_tokens": 3,
    "max_tokens": 5,
    "metadata": {"foo": "string"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"content": "string", "type": "content"},
    "presence_penalty": -2,
    "prompt_cache_key": "prompt-cache-key-1234",
    "prompt_cache_retention": "in-memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "safety-identifier-1234",
    "seed": -9007199254740991,
    "service_tier": "auto",
    "stop": "\n",
    "store": True,
    "stream_options": {"include_obfuscation": True, "include_usage": True},
    "temperature": 1,
    "tool_choice": "none",
    "tools": [TOOL],
    "top_logprobs": 0,
    "top_p": 1,
    "user": "user-1234",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
UNKNOWN: dict[str, Any] = {
    **{f"unknown_{n}": {"nested": [n]} for n in range(24)},
    "ignore_eos": False,
    "chat_template_kwargs": {"unknown": 1},
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
}


def content(body: Any, index: int = 0) -> Any:
    return body["choices"][index]["message"]["content"]


def test_cb01_a_minimal_request_gets_a_whole_answer(real: Server) -> None:
    response = real.post(CHAT, real.body())
    body = response.json()
    assert body["object"] == "chat.completion"
    assert type(body["created"]) is int
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == real.model
    assert {"system_fingerprint", "service_tier"} <= set(body)
    (choice,) = body["choices"]
    assert {"finish_reason", "index", "message", "logprobs"} <= set(choice)
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "stop")
    message = choice["message"]
    assert (message["role"], message["refusal"]) == ("assistant", None)
    assert message["content"]
    assert "tool_calls" not in message
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-model"] == real.model
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers["x-request-id"]


def test_cb02_text_parts_are_joined_by_the_templates_rule(real: Server) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "cortex?"}]
    split = real.chat(messages=[user(parts)], max_tokens=1)
    joined = real.chat(messages=[user("What is\ncortex?")], max_tokens=1)
    assert split["usage"]["prompt_tokens"] == joined["usage"]["prompt_tokens"]


def test_cb03_developer_is_system(real: Server) -> None:
    said = [
        real.chat(messages=[{"role": role, "content": "Be brief."}, user()])
        for role in ("developer", "system")
    ]
    assert content(said[0]) == content(said[1])
    assert said[0]["usage"]["prompt_tokens"] == said[1]["usage"]["prompt_tokens"]


def test_cb04_a_system_message_may_come_late(real: Server) -> None:
    assert content(real.chat(messages=[user(), {"role": "system", "content": "Be brief."}]))


@pytest.mark.parametrize("empty", ["", None, []], ids=["CB05-text", "CB05-null", "CB05-parts"])
def test_cb05_an_empty_assistant_turn_is_taken(real: Server, empty: Any) -> None:
    assert real.chat(messages=[user(), {"role": "assistant", "content": empty}, user()])


def test_cb06_a_prefilled_answer_is_continued(real: Server) -> None:
    whole = content(real.chat())
    start = whole[: len(whole) // 2]
    messages = [user(), {"role": "assistant", "content": start}]
    body = real.chat(messages=messages, continue_final_message=True)
    assert not content(body).startswith(start)


def test_cb07_one_token_is_one_token(real: Server) -> None:
    body = real.chat(max_completion_tokens=1)
    assert body["usage"]["completion_tokens"] == 1
    assert body["choices"][0]["finish_reason"] == "length"


def test_cb08_the_newer_limit_wins(real: Server) -> None:
    body = real.chat(max_tokens=5, max_completion_tokens=3)
    assert body["usage"]["completion_tokens"] == 3


def test_cb09_a_limit_of_nothing_is_refused(real: Server) -> None:
    error = real.refused(CHAT, real.body(max_tokens=0))
    assert (error["code"], error["param"]) == ("integer_below_min_value", "max_tokens")


def test_cb10_choices_are_numbered_and_their_prompt_counts_once(real: Server) -> None:
    one, three = real.chat(temperature=1, max_tokens=4), real.chat(n=3, temperature=1, max_tokens=4)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert 3 <= three["usage"]["completion_tokens"] <= 12


@pytest.mark.parametrize("several", [False, True], ids=["CB11-one", "CB11-four"])
def test_cb11_the_answer_ends_before_a_stop_string(real: Server, several: bool) -> None:
    whole = content(real.chat())
    stop = whole[8:14]  # spans tokens
    stops = [stop, "\0 never", "\1 never", "\2 never"] if several else stop
    body = real.chat(stop=stops)
    assert content(body) == whole[: whole.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    streamed = "".join(
        choice["delta"].get("content") or ""
        for chunk in real.chunks(stop=stops)
        for choice in chunk["choices"]
    )
    assert streamed == content(body)


def test_cb18_an_alias_is_echoed(real: Server) -> None:
    assert real.chat(model="alias", max_tokens=1)["model"] == "alias"
    assert {chunk["model"] for chunk in real.chunks(model="alias", max_tokens=2)} == {"alias"}


def test_cb19_all_parameters_of_the_sdk_at_once(real: Server) -> None:
    assert real.chat(**EVERYTHING)["usage"]["completion_tokens"] <= 3


def test_cb20_unknown_fields_are_ignored(real: Server) -> None:
    assert len(UNKNOWN) == 30
    assert real.chat(**UNKNOWN, max_tokens=2)["choices"]


def test_cb21_every_optional_field_may_be_null(real: Server) -> None:
    nothing = dict.fromkeys([*EVERYTHING, "functions", "function_call", "stream", "tools"])
    assert real.chat(**nothing)["choices"]


def test_cb22_what_only_openai_can_do_is_taken_and_not_done(real: Server) -> None:
    metadata = {f"key-{n}": "v" * 512 for n in range(16)}
    body = real.chat(metadata=metadata, store=True, user="u", service_tier="auto", max_tokens=1)
    assert body["service_tier"] == "default"


def test_cb23_a_model_without_eyes_says_so(real: Server) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(png_bytes())}}
    error = real.refused(CHAT, real.body(messages=[user([image])]))
    assert error["param"] == "messages[0].content[0]"
    assert "takes text only" in error["message"]


def test_cb25_a_second_long_prompt_is_cached(real: Server) -> None:
    for _ in range(2):
        body = real.chat(messages=[user(LONG + "CB25")], max_tokens=1)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_cb26_a_prompt_beyond_the_context_is_refused_with_both_numbers(real: Server) -> None:
    error = real.refused(CHAT, real.body(messages=[user("word and " * 40_000)]))
    assert error["code"] == "context_length_exceeded"
    assert error["prompt_tokens"] > error["context"]
    assert str(error["prompt_tokens"]) in error["message"]
    assert str(error["context"]) in error["message"]


def test_cb27_a_limit_beyond_the_context_is_cut(real: Server) -> None:
    assert real.chat(max_tokens=1_000_000)["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"], ids=["CB29-new", "CB29-old"])
def test_cb29_history_may_hold_reasoning(real: Server, key: str) -> None:
    turn = {"role": "assistant", "content": "Yes.", key: "Is it? It is."}
    assert real.chat(messages=[user(), turn, user()], max_tokens=1)


def test_cb31_a_limit_within_the_thinking_leaves_empty_content(real: Server) -> None:
    body = real.chat(max_tokens=3, chat_template_kwargs={"enable_thinking": True})
    assert (content(body), body["choices"][0]["finish_reason"]) == ("", "length")
