"""Streams of a whole neuron: framing, order, and the same answer as without a stream."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes.demo_neuron import DEMO, QUESTION, THINKING, WEATHER, DemoNeuron, chunks_of, user


def choices(chunks: list[Any], index: int = 0) -> list[Any]:
    """The choice *index* of each chunk that has it."""
    return [
        choice
        for chunk in chunks
        if chunk != "[DONE]"
        for choice in chunk["choices"]
        if choice["index"] == index
    ]


def message_of(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """What the deltas of one choice add up to, in the shape of a message."""
    content, reasoning, calls = "", "", []
    for choice in choices(chunks, index):
        delta = choice["delta"]
        content += delta.get("content") or ""
        reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append({"name": call["function"]["name"], "arguments": ""})
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return {"content": content, "reasoning": reasoning, "calls": calls}


def whole_message(body: Any, index: int = 0) -> dict[str, Any]:
    message = body["choices"][index]["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    reasoning = message.get("reasoning_content", "")
    return {"content": message["content"] or "", "reasoning": reasoning, "calls": calls}


REQUESTS: dict[str, dict[str, Any]] = {
    "content": {},
    "cut": {"max_tokens": 7},
    "reasoning": {"chat_template_kwargs": THINKING},
    "cut reasoning": {"chat_template_kwargs": THINKING, "max_tokens": 5},
    "tools": {"messages": user("What is the weather in Paris?"), "tools": [WEATHER]},
    "tools and reasoning": {
        "messages": user("What is the weather in Paris?"),
        "tools": [WEATHER],
        "chat_template_kwargs": THINKING,
    },
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "logprobs and reasoning": {"logprobs": True, "chat_template_kwargs": THINKING},
    "several": {"n": 2},
}


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_stream_adds_up_to_the_whole_answer(demo: DemoNeuron, fields: dict[str, Any]) -> None:
    body = {"messages": user(QUESTION), "temperature": 0, **fields}
    whole = demo.ask("/v1/chat/completions", body).json()
    chunks = demo.stream(**body, stream_options={"include_usage": True})
    for index, choice in enumerate(whole["choices"]):
        assert message_of(chunks, index) == whole_message(whole, index)
        assert choices(chunks, index)[-1]["finish_reason"] == choice["finish_reason"]
        entries = [
            entry
            for part in choices(chunks, index)
            for entry in (part["logprobs"] or {"content": ()})["content"]
        ]
        made = (choice["logprobs"] or {"content": []})["content"]
        assert [e["token"] for e in entries] == [e["token"] for e in made]
    usage = chunks[-2]["usage"]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[key] == whole["usage"][key]


def test_chunks_come_in_order_and_share_their_head(demo: DemoNeuron) -> None:
    chunks = demo.stream(max_tokens=4)
    assert chunks.pop() == "[DONE]"
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert all(isinstance(chunk["choices"], list) and chunk["choices"] for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 5 + ["length"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert all(not chunk.get("usage") for chunk in chunks)


def test_usage_comes_once_where_asked(demo: DemoNeuron) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = demo.stream(n=2, max_tokens=3, stream_options=options)
    assert [chunk["usage"] is not None for chunk in chunks[:-1]][-1:] == [True]
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert chunks[-2]["choices"] == []
    assert chunks.count("[DONE]") == 1
    finishes = [c for k in (0, 1) for c in choices(chunks, k) if c["finish_reason"]]
    assert len(finishes) == 2


def test_only_a_gateway_is_told_the_prompts_count_early(demo: DemoNeuron) -> None:
    first = demo.stream(max_tokens=1, headers={"x-cortex-caller": "someone"})[0]
    whole = demo.chat(max_tokens=1)["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens"] == whole
    assert "usage" not in demo.stream(max_tokens=1)[0]


def test_timings_come_on_the_last_chunk(demo: DemoNeuron) -> None:
    chunks = demo.stream(max_tokens=3)
    assert ["timings" in chunk for chunk in chunks[:-1]] == [False] * (len(chunks) - 2) + [True]
    timings = chunks[-2]["timings"]
    assert timings["completion_tokens"] == 3
    assert timings["prefill_ms"] > 0


def test_thinking_precedes_the_answer_and_never_shares_a_delta(demo: DemoNeuron) -> None:
    chunks = demo.stream(chat_template_kwargs=THINKING)
    deltas = [choice["delta"] for choice in choices(chunks)[1:]]
    kinds = ["".join(sorted(set(delta))) for delta in deltas if delta]
    thoughts = kinds.count("reasoning_content")
    assert thoughts
    assert kinds == ["reasoning_content"] * thoughts + ["content"] * (len(kinds) - thoughts)


def test_a_call_begins_with_id_and_name_and_goes_on_with_arguments(demo: DemoNeuron) -> None:
    chunks = demo.stream(messages=user("What is the weather in Paris?"), tools=[WEATHER])
    calls = [c for choice in choices(chunks) for c in choice["delta"].get("tool_calls", ())]
    assert set(calls[0]) == {"index", "id", "type", "function"}
    assert len(calls) > 1
    assert all(set(call) == {"index", "function"} for call in calls[1:])
    assert all(set(call["function"]) == {"arguments"} for call in calls[1:])


def test_framing_and_headers(demo: DemoNeuron) -> None:
    body = {"model": DEMO, "messages": user(QUESTION), "stream": True, "max_tokens": 5}
    headers = {"accept-encoding": "gzip", "accept": "application/json"}
    with demo.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers
    assert "content-encoding" not in answer.headers
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in raw
    for frame in raw.decode().removesuffix("\n\n").split("\n\n"):
        assert frame.startswith(("data: ", ":"))
        assert "\n" not in frame


def test_the_first_text_comes_before_the_last_is_made(demo: DemoNeuron) -> None:
    steps = 'neuron_engine_steps_total{model="cortex/demo"}'
    before = demo.metric(steps)
    with demo.streaming(ignore_eos=True, max_tokens=1500) as answer:
        chunks = chunks_of(answer.iter_lines())
        next(chunks), next(chunks)
        assert demo.metric(steps) - before < 750


def test_streams_side_by_side_are_never_mixed(demo: DemoNeuron) -> None:
    tokens = [
        demo.ask("/tokenize", {"prompt": word, "return_tokens": True}).json()["tokens"][0]
        for word in "abcdefghijklmnopqrst"
    ]

    def one(k: int) -> str:
        bias = {str(tokens[k]): 100}
        text: str = message_of(demo.stream(logit_bias=bias, max_tokens=12))["content"]
        return text

    with ThreadPoolExecutor(20) as pool:
        texts = list(pool.map(one, range(20)))
    assert texts == [letter * 12 for letter in "abcdefghijklmnopqrst"]


def test_a_busy_batch_does_not_change_a_greedy_answer(demo: DemoNeuron) -> None:
    alone = demo.chat(temperature=0)["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(6) as pool:
        busy = list(pool.map(lambda _: demo.chat(temperature=0), range(6)))
    assert {body["choices"][0]["message"]["content"] for body in busy} == {alone}


def test_every_frame_is_json(demo: DemoNeuron) -> None:
    for chunk in demo.stream(max_tokens=3, logprobs=True, logit_bias={"5": -100}):
        json.dumps(chunk, allow_nan=False)
