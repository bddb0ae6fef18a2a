"""The automaton of chat completion chunks, on random answers: what a neuron's encoder writes, as
the gateway passes it on, is what the strictest client takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.chunk_client import StreamError, follow
from fakes.served_neuron import demo_text
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.request import Request, SamplingParams
from cortex.errors import UpstreamError
from cortex.gateway.encoder import PassThrough
from cortex.neuron.chat_answers import ChatStream
from cortex.neuron.generation import Completion, Update, timings
from cortex.text.deltas import ContentDelta, Delta, OutputParser, ReasoningDelta, ToolCallDelta
from cortex.wire.sse import Frame, FrameReader

many = settings(max_examples=50, deadline=None)
Answer = tuple[list[Delta], str]  # the deltas of one choice, and its finish
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """The deltas of one choice in an order that a parser gives, and its finish."""
    deltas: list[Delta] = [ReasoningDelta(text) for text in draw(st.lists(words, max_size=3))]
    calls = 0
    for text in draw(st.lists(st.none() | words, max_size=4)):
        if text is not None:
            deltas.append(ContentDelta(text))
            continue
        deltas.append(ToolCallDelta(calls, f"call_{calls}", draw(st.sampled_from("fg")), ""))
        pieces = draw(st.lists(words, max_size=3))
        deltas += [ToolCallDelta(calls, None, None, piece) for piece in pieces]
        calls += 1
    finish = draw(st.sampled_from(["tool_calls", "length"] if calls else ["stop", "length"]))
    return deltas, finish


def completion(index: int, finish: str) -> Completion:
    request = Request("r", (1, 2), SamplingParams(), 9)
    one = Completion(index, request, OutputParser(demo_text().tokenizer))
    one.finish = finish
    return one


def written(choices: list[Answer], order: list[int], *, usage: bool) -> list[bytes]:
    """The frames of a neuron, its choices' steps interleaved as *order* says."""
    stream = ChatStream(
        "chatcmpl-1",
        "m",
        12,
        demo_text().tokenizer,
        logprobs=False,
        include_usage=True,
        prompt_tokens=7,
        early_usage=usage,
    )
    frames = [stream.opening(len(choices))]
    left = [list(deltas) for deltas, _ in choices]
    for number in order:
        waiting = left[number % len(left)]
        if waiting:
            frames.append(stream.update(number % len(left), Update((waiting.pop(0),))))
    for index, waiting in enumerate(left):
        frames += [stream.update(index, Update((delta,))) for delta in waiting]
    done = [completion(index, finish) for index, (_, finish) in enumerate(choices)]
    frames += [stream.finish(each, timings(done, 7)) for each in done]
    frames.append(stream.end({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}))
    return frames


def frames_of(data: bytes) -> list[Frame]:
    return FrameReader().feed(data)


def events(data: bytes) -> list[Any]:
    payloads = [frame.data for frame in frames_of(data) if frame.data is not None]
    return ["[DONE]" if each == b"[DONE]" else json.loads(each) for each in payloads]


@many
@given(
    st.lists(answers(), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), max_size=20),
    st.booleans(),
    st.sampled_from(["m", "gpt-4"]),
)
def test_whatever_is_answered_the_protocol_holds(
    choices: list[Answer], order: list[int], usage: bool, name: str
) -> None:
    encoder = PassThrough(model="m", requested=name, include_usage=usage)
    source = b"".join(written(choices, order, usage=usage))
    passed = b"".join(map(encoder.feed, frames_of(source)))
    client = follow(events(passed), usage=usage, choices=len(choices))
    assert encoder.complete
    assert client.model == name
    for choice, (deltas, finish) in zip(client.choices, choices, strict=True):
        assert choice.finish_reason == finish
        assert choice.content == "".join(d.text for d in deltas if isinstance(d, ContentDelta))
        assert choice.reasoning == "".join(d.text for d in deltas if isinstance(d, ReasoningDelta))
        made = [d for d in deltas if isinstance(d, ToolCallDelta)]
        assert [call["name"] for call in choice.calls] == [d.name for d in made if d.name]
        for index, call in enumerate(choice.calls):
            assert call["arguments"] == "".join(d.arguments for d in made if d.index == index)


@many
@given(answers(), st.integers(0, 20))
def test_a_stream_that_breaks_off_never_looks_finished(answer: Answer, end: int) -> None:
    frames = frames_of(b"".join(written([answer], [], usage=False)))[:-1][:end]
    encoder = PassThrough(model="m", requested="m", include_usage=False)
    passed = b"".join(map(encoder.feed, frames))
    assert not encoder.complete
    broken = events(passed + encoder.fail(UpstreamError("the neuron is gone")))
    with pytest.raises(StreamError, match="the neuron is gone"):
        follow(broken)
