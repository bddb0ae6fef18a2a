"""Every stream adds up to the whole answer, field by field, whatever is said and asked for.

Recorded token streams times combinations of options, each asked twice: once whole, once as frames
that are put together by the rules of OpenAI's SDKs (choices by index, strings and lists joined).
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import pytest
from fakes.demo_neuron import THINKING, WEATHER, chunks_of
from fakes.served_neuron import END, MODEL, ScriptedEngine, ServedNeuron, ids, served

from cortex.engine.request import Event, FirstToken, Request, TokenEvent, TokenLogprob

CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln </tool_call>"}}\n</tool_call>'
)
STREAMS: dict[str, list[int]] = {
    "text": ids("Hello there, you."),
    "unicode": ids("日本 👩‍👩‍👧 ok é"),
    "space": ids("\n\n a \n\n b  \n"),
    "half a character": ids("ok 日")[:-1],
    "control tokens": ids("a<|im_start|>b"),
    "nothing": [],
    "thinking": ids("<think>\nwhy not 日本\n</think>\n\nBecause there."),
    "thinking twice": ids("<think>a b</think>one<think>\nc\n</think>\n\ntwo"),
    "thinking cut off": ids("<think>\nwhy not 日")[:-1],
    "a closer alone": ids("so it goes\n</think>\n\nBecause."),
    "a call": ids(CALL),
    "text and calls": ids(f"I look there.\n{CALL}\n{CALL}\n"),
    "thinking and a call": ids(f"<think>\nlook\n</think>\n\n{CALL}"),
    "a call cut off": ids('ok <tool_call>\n{"name": "get_weather", "arguments": {"city": "K'),
    "what is no call": ids("<tool_call>\nthere is none</tool_call> ok"),
    "thinking in a call": ids(CALL.replace("Köln", "<think>x</think>")),
}


@attrs.define(eq=False, slots=False)
class Recorded(ScriptedEngine):
    """Says ``stream`` in choice 0, and its words in turned order in the next ones; after a closing
    that was put in, a few words. Logprobs are made up, but the same for the same token."""

    stream: list[int] = attrs.field(factory=list)

    def _next(self, request: Request, done: int) -> Event:
        choice = int(request.id.rpartition("-")[2].partition(".")[0])
        said = self.stream if choice == 0 else self.stream[::-1]
        self.script = [*(ids("So there.") if request.resumed else said), END]
        event = super()._next(request, done)
        assert isinstance(event, TokenEvent)
        wanted = request.sampling.logprobs
        if wanted is not None:
            event = attrs.evolve(event, logprob=_logprob(event.token, wanted))
        if event.first is not None and request.sampling.prompt_logprobs:
            scored = (None, *(_logprob(token, wanted or 0) for token in request.prompt[1:]))
            event = attrs.evolve(event, first=FirstToken(0, 0.0, scored))
        return event


def _logprob(token: int, best: int) -> TokenLogprob:
    worse = [(1 + (token * 7 + k) % 2000, -1.0 - k) for k in range(best)]
    return TokenLogprob(token, -1.0 - token % 5, tuple(worse))


# Putting frames together


def accumulate(total: dict[str, Any], delta: dict[str, Any]) -> None:
    """As the SDKs do: what they know nothing of included."""
    for key, value in delta.items():
        known = total.get(key)
        if known is None:
            total[key] = copy.deepcopy(value)
        elif value is None:
            pass
        elif key in ("index", "type"):
            total[key] = value
        elif isinstance(known, dict):
            accumulate(known, value)
        elif isinstance(known, list) and key == "tool_calls":
            for entry in value:
                if entry["index"] == len(known):
                    known.append(copy.deepcopy(entry))
                else:
                    accumulate(known[entry["index"]], entry)
        else:
            total[key] = known + value


def joined(chunks: list[Any]) -> dict[str, Any]:
    """The whole answer that *chunks* are the parts of."""
    assert chunks.pop() == "[DONE]"
    usage = chunks.pop()
    assert usage["choices"] == []
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in [*chunks, usage]}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        total = choices.setdefault(choice["index"], {})
        assert total.get("finish_reason") is None, "something came after the end"
        accumulate(total, choice)
    timed = [chunk["timings"] for chunk in chunks if "timings" in chunk]
    assert len(timed) == 1
    ordered = [choices[index] for index in sorted(choices)]
    return {
        "choices": ordered,
        "usage": usage["usage"],
        "timings": timed[0],
        "model": chunks[0]["model"],
    }


def without_times(body: dict[str, Any]) -> dict[str, Any]:
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return {
        "choices": body["choices"],
        "usage": body["usage"],
        "timings": {name: body["timings"][name] for name in counts},
        "model": body["model"],
    }


def anonymous(calls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """*calls* without what differs from one answer to the next."""
    seen = set()
    for call in calls:
        assert call["id"].startswith("call_")
        assert call["id"] not in seen
        seen.add(call["id"])
        yield {key: value for key, value in call.items() if key not in ("id", "index")}


def chat_message(choice: dict[str, Any], key: str) -> dict[str, Any]:
    """A choice as both forms have it, its message (under *key*) with every member."""
    message = choice.pop(key)
    content = message.get("content") or ""
    calls = list(anonymous(message.get("tool_calls") or ()))
    return {
        **choice,
        "role": message["role"],
        "refusal": message["refusal"],
        # Beside calls nothing but space is no content; a stream cannot take back what it sent.
        "content": "" if calls and not content.strip() else content,
        "reasoning": message.get("reasoning_content", ""),
        "calls": calls,
    }


async def both(neuron: ServedNeuron, route: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """The whole answer, and what the stream adds up to."""
    body = {"model": MODEL, "temperature": 0, **body}
    whole = await neuron.client.post(route, json=body)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    stream = await neuron.client.post(route, json=asked)
    assert (whole.status_code, stream.status_code) == (200, 200), whole.text + stream.text
    assert "\ufffd" not in stream.text or "\ufffd" in whole.text
    chunks = list(chunks_of(iter(stream.text.split("\n"))))
    return without_times(whole.json()), without_times(joined(chunks))


def combinations(options: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*options.values()):
        yield {key: value for fields in chosen for key, value in fields.items()}


CHAT_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "logprobs": [{}, {"logprobs": True, "top_logprobs": 2}],
    "n": [{}, {"n": 2}],
    "stop": [{}, {"stop": ["there", "why", "ok"]}],
    "tools": [{}, {"tools": [WEATHER]}],
    "thinking": [{}, {"thinking": {"budget_tokens": 2}}, {"chat_template_kwargs": THINKING}],
}
COMPLETION_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt": "Once 日"}, {"prompt": [[5, 300, 301], [7]]}],
    "echo": [{}, {"echo": True}],
    "logprobs": [{}, {"logprobs": 0}, {"logprobs": 2}],
    "n": [{}, {"n": 2}],
    "stop": [{}, {"stop": ["there", "why", "ok"]}],
    "limit": [{"max_tokens": 60}, {"max_tokens": 0}, {"max_tokens": 3}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
async def test_chat_frames_add_up_to_the_answer(name: str) -> None:
    stream = STREAMS[name]
    async with served(lambda: Recorded(stream=stream)) as neuron:
        for fields in combinations(CHAT_OPTIONS):
            limit = len(stream) if "cut" in name else 400
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": limit, **fields}
            whole, told = await both(neuron, "/v1/chat/completions", body)
            choices = [chat_message(choice, "message") for choice in whole.pop("choices")]
            assert [chat_message(choice, "delta") for choice in told.pop("choices")] == choices, (
                fields
            )
            assert told == whole, fields


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["text", "unicode", "half a character", "control tokens", "nothing"]
)
async def test_completion_frames_add_up_to_the_answer(name: str) -> None:
    stream = STREAMS[name]
    async with served(lambda: Recorded(stream=stream)) as neuron:
        for fields in combinations(COMPLETION_OPTIONS):
            whole, told = await both(neuron, "/v1/completions", fields)
            for choice in told["choices"]:
                choice.setdefault("text", "")
            assert told == whole, fields
            json.dumps(whole, allow_nan=False)
