"""Chat bodies and chunks: OpenAI's shapes, and streams that add up to the whole answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from fakes.demo_neuron import chunks_of
from fakes.served_neuron import demo_text, ids
from hypothesis import given
from hypothesis import strategies as st

from cortex.engine.request import Request, SamplingParams, TokenLogprob
from cortex.neuron.chat_answers import (
    LOWEST_LOGPROB,
    ChatMessage,
    ChatStream,
    chat_body,
    delta_body,
    finite,
    logprob_entry,
)
from cortex.neuron.generation import Completion, Update, timings
from cortex.text.deltas import ContentDelta, Delta, OutputParser, ReasoningDelta, ToolCallDelta

TOKENIZER = demo_text().tokenizer
CALL = (ToolCallDelta(0, "call_1", "look", ""), ToolCallDelta(0, None, None, '{"a":'))
REST = (ToolCallDelta(0, None, None, " 1}"),)


def ended(finish: str = "stop") -> Completion:
    one = Completion(
        0, Request("r", (1, 2), SamplingParams(), 9), OutputParser(TOKENIZER, stops=["x"])
    )
    one.finish = finish
    return one


def shape(**fields: Any) -> ChatStream:
    given: dict[str, Any] = {
        "id": "chatcmpl-1",
        "model": "m",
        "created": 12,
        "tokenizer": TOKENIZER,
        "logprobs": False,
        "include_usage": False,
        "prompt_tokens": 7,
        "early_usage": False,
    }
    return ChatStream(**(given | fields))


def parsed(frames: bytes) -> list[Any]:
    return list(chunks_of(iter(frames.decode().split("\n"))))


def streamed(updates: Sequence[Update], **fields: Any) -> list[Any]:
    stream = shape(**fields)
    frames = stream.opening(1) + b"".join(stream.update(0, update) for update in updates)
    done = ended("tool_calls")
    return parsed(
        frames + stream.finish(done, timings([done], 7)) + stream.end({"total_tokens": 3})
    )


def added_up(chunks: Sequence[Any]) -> dict[str, Any]:
    """A message out of the deltas, put together as OpenAI's SDK does."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "entries": []}
    for chunk in chunks:
        for choice in chunk["choices"] if chunk != "[DONE]" else ():
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning_content") or ""
            message["entries"] += (choice["logprobs"] or {"content": []})["content"]
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(message["calls"])
                    assert call["type"] == "function"
                    message["calls"].append([call["id"], call["function"]["name"], ""])
                else:
                    assert "name" not in call["function"]
                    assert "type" not in call
                message["calls"][call["index"]][2] += call["function"]["arguments"]
    return message


def entry(token: int) -> TokenLogprob:
    return TokenLogprob(token, -0.25, ((token, -0.25), (token + 1, -2.0)))


texts = st.text(max_size=5)
deltas = st.one_of(st.builds(ContentDelta, texts), st.builds(ReasoningDelta, texts))


@st.composite
def histories(draw: st.DrawFn) -> list[Update]:
    """Updates with text, then perhaps a tool call, each with any number of logprobs."""
    groups: list[tuple[Delta, ...]] = [
        tuple(g) for g in draw(st.lists(st.lists(deltas, max_size=3), max_size=6))
    ]
    if draw(st.booleans()):
        groups += [CALL, REST]
    tokens = st.lists(st.integers(300, 400), max_size=2)
    return [Update(group, tuple(map(entry, draw(tokens)))) for group in groups]


@given(updates=histories(), logprobs=st.booleans())
def test_a_stream_adds_up_to_the_whole_answer(updates: list[Update], logprobs: bool) -> None:
    whole = ChatMessage(TOKENIZER, logprobs)
    for update in updates:
        whole.add(update)
    choice = whole.choice(ended())
    if not logprobs:  # the engine makes none then
        updates = [Update(update.deltas) for update in updates]
    got = added_up(streamed(updates, logprobs=logprobs))
    message = choice["message"]
    if message["content"] is not None:
        assert got["content"] == message["content"]
    assert got["reasoning"] == message.get("reasoning_content", "")
    assert got["calls"] == [
        [c["id"], c["function"]["name"], c["function"]["arguments"]]
        for c in message.get("tool_calls", [])
    ]
    assert got["entries"] == ((choice["logprobs"] or {"content": []})["content"])


def test_chunks_come_in_openais_order_and_share_their_head() -> None:
    chunks = streamed([Update((ContentDelta("a"),)), Update((ContentDelta("b"),))])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [c["choices"][0]["delta"] for c in chunks[1:-1]] == [
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 3 + ["tool_calls"]
    assert chunks[-1] == "[DONE]"
    heads = {(c["id"], c["object"], c["created"], c["model"]) for c in chunks[:-1]}
    assert heads == {("chatcmpl-1", "chat.completion.chunk", 12, "m")}


def test_usage_is_its_own_chunk_and_null_before_where_asked() -> None:
    chunks = streamed([Update((ContentDelta("a"),))], include_usage=True)
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"] == {"total_tokens": 3}
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


def test_without_the_wish_no_chunk_has_usage() -> None:
    chunks = streamed([Update((ContentDelta("a"),))])
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks[:-1])


def test_a_gateway_gets_the_prompts_count_on_the_first_chunk_alone() -> None:
    stream = shape(early_usage=True, include_usage=True)
    first, second = parsed(stream.opening(2))
    assert first["usage"] == {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    assert second["usage"] is None


def test_each_choice_has_its_role_chunk() -> None:
    chunks = parsed(shape().opening(3))
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 2]


def test_timings_come_with_the_last_finish() -> None:
    chunks = streamed([Update((ContentDelta("a"),))])
    assert ["timings" in chunk for chunk in chunks[:-1]] == [False, False, True]
    assert set(chunks[-2]["timings"]) >= {"queue_ms", "prefill_ms", "decode_ms", "cached_tokens"}


def test_a_logprob_whose_text_is_held_back_still_comes() -> None:
    chunks = streamed([Update((), (entry(300),)), Update((ContentDelta("a"),))], logprobs=True)
    assert len(added_up(chunks)["entries"]) == 1
    assert chunks[1]["choices"][0]["delta"] == {}  # neither content nor reasoning
    assert added_up(chunks)["content"] == "a"


def test_an_update_with_nothing_sends_nothing() -> None:
    assert shape().update(0, Update(())) == b""


def test_a_call_comes_with_id_and_name_once() -> None:
    assert delta_body(CALL[0])["tool_calls"] == [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": ""},
        }
    ]
    assert delta_body(CALL[1])["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a":'}}]


@pytest.mark.parametrize(
    ("text", "content"), [("", None), ("\n ", None), ("I look.", "I look."), (None, None)]
)
def test_content_is_null_beside_calls_unless_something_is_said(
    text: str | None, content: str | None
) -> None:
    message = ChatMessage(TOKENIZER, logprobs=False)
    if text is not None:
        message.add(Update((ContentDelta(text),)))
    message.add(Update(CALL))
    assert message.choice(ended("tool_calls"))["message"]["content"] == content


def test_content_is_empty_and_not_null_where_only_thoughts_came() -> None:
    message = ChatMessage(TOKENIZER, logprobs=False)
    message.add(Update((ReasoningDelta("hmm"),)))
    told = message.choice(ended("length"))["message"]
    assert told == {"role": "assistant", "content": "", "refusal": None, "reasoning_content": "hmm"}


def test_a_body_has_every_key_the_specification_requires() -> None:
    done = ended()
    message = ChatMessage(TOKENIZER, logprobs=False)
    body = chat_body("c", "m", 5, [message.choice(done)], {"total_tokens": 1}, timings([done], 2))
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(body)
    assert body["object"] == "chat.completion"
    assert body["service_tier"] == "default"
    (choice,) = body["choices"]
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None
    assert "tool_calls" not in choice["message"]
    json.dumps(body, allow_nan=False)


@given(st.floats(max_value=0.0) | st.just(float("nan")))
def test_every_logprob_can_be_written_as_json(logprob: float) -> None:
    assert LOWEST_LOGPROB <= finite(logprob) <= 0.0


def test_a_token_of_half_a_character_tells_its_bytes() -> None:
    tokens = ids("日")
    entries = [logprob_entry(TOKENIZER, entry(token)) for token in tokens]
    assert b"".join(bytes(e["bytes"]) for e in entries) == "日".encode()
    assert all(set(e) == {"token", "logprob", "bytes", "top_logprobs"} for e in entries)
    assert all(set(t) == {"token", "logprob", "bytes"} for e in entries for t in e["top_logprobs"])
