"""Requests to a scripted endpoint, in virtual time: what is measured is known beforehand."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from cortex.cli.bench.dialects import DIALECTS
from cortex.cli.bench.load import Endpoint, base_of, calibrate, measure
from cortex.cli.bench.plan import Amount, Cell, Plan, amount_for
from cortex.cli.bench.prompts import Length, Prompts
from cortex.cli.bench.run import run
from cortex.cli.bench.statistics import Objectives, figures
from cortex.cli.exits import Failed
from cortex.gateway.upstream import Broken, Call, Refused
from cortex.wire import json

Step = bytes | float | Exception


@attrs.define(eq=False)
class Scripted:
    """An answer that comes in steps: bytes, or seconds to wait, or a failure."""

    steps: deque[Step]
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    complete: bool = False
    at_hand: bool = False

    async def receive(self) -> bytes:
        while self.steps:
            step = self.steps.popleft()
            if isinstance(step, Exception):
                raise step
            if isinstance(step, bytes):
                return step
            await trio.sleep(step)
        return b""

    async def read(self, limit: int) -> bytes:
        whole = b""
        while data := await self.receive():
            whole += data
        return whole


@attrs.define(eq=False)
class ScriptedUpstream:
    """Answers each call with what *script* makes of its body; *delay* seconds to the head."""

    script: Callable[[dict[str, Any]], list[Step]]
    delay: float = 0.0
    status: int = 200
    refuses: bool = False
    calls: list[Call] = attrs.field(factory=list)
    under_way: int = 0
    most: int = 0

    @asynccontextmanager
    async def call(self, call: Call) -> AsyncIterator[Scripted]:
        self.calls.append(call)
        if self.refuses:
            raise Refused("nobody is there")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await trio.sleep(self.delay)
            yield Scripted(deque(self.script(json.load_object(call.body))), self.status)
        finally:
            self.under_way -= 1


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value) + b"\n\n"


def words(body: dict[str, Any]) -> int:
    return len(body["messages"][0]["content"].split())


def delta(text: str) -> bytes:
    return data({"choices": [{"index": 0, "delta": {"content": text}}]})


def usage(prompt: int, completion: int) -> bytes:
    told = {"prompt_tokens": prompt, "completion_tokens": completion}
    return data({"choices": [], "usage": {**told, "prompt_tokens_details": {"cached_tokens": 1}}})


def chat(body: dict[str, Any]) -> list[Step]:
    """First output after 0.2 s, another each 0.05 s, the end 0.01 s after the last one."""
    steps: list[Step] = [data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 0.2]
    for n in range(body["max_tokens"]):
        steps += [delta("x"), 0.05] if n < body["max_tokens"] - 1 else [delta("x"), 0.01]
    return [*steps, usage(2 * words(body) + 7, body["max_tokens"]), b"data: [DONE]\n\n"]


def endpoint(upstream: ScriptedUpstream, dialect: str = "chat", **options: Any) -> Endpoint:
    return Endpoint(upstream, "http://x", "m", DIALECTS[dialect], **options)


async def test_the_times_of_a_stream_are_those_of_the_script(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat, delay=0.1)
    sample = await endpoint(upstream).ask("one two three", 5)
    assert sample.error is None
    assert sample.ttft == pytest.approx(0.3)
    assert list(sample.gaps) == pytest.approx([0.05] * 4)
    assert sample.e2el == pytest.approx(0.51)
    assert sample.tpot == pytest.approx(0.21 / 4)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.completion_tokens) == (13, 1, 5)


async def test_what_is_asked(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    await endpoint(upstream, key="k").ask("Hi", 3)
    (call,) = upstream.calls
    assert (call.path, call.headers) == ("/v1/chat/completions", {"authorization": "Bearer k"})
    assert json.load_object(call.body) == {
        "model": "m",
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "Hi"}],
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def message_events(body: dict[str, Any]) -> list[Step]:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + data({"type": kind, **fields})

    told = {"input_tokens": 4, "cache_read_input_tokens": 16, "output_tokens": 0}
    text = {"type": "text_delta", "text": "x"}
    return [
        event("message_start", message={"usage": told}),
        event("ping"),
        0.5,
        event("content_block_delta", delta=text),
        0.25,
        event("content_block_delta", delta=text),
        event("message_delta", usage={"output_tokens": 2}),
        event("message_stop"),
    ]


async def test_anthropics_events_are_read(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(message_events)
    sample = await endpoint(upstream, "messages", key="k").ask("Hi", 3)
    assert sample.error is None
    assert (sample.ttft, list(sample.gaps)) == (pytest.approx(0.5), pytest.approx([0.25]))
    assert (sample.prompt_tokens, sample.cached_tokens, sample.completion_tokens) == (20, 16, 2)
    assert upstream.calls[0].headers == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert "ignore_eos" not in json.load_object(upstream.calls[0].body)


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("chat", {"choices": [{"message": {}}], "usage": {"completion_tokens": 3}}),
        ("completions", {"choices": [{"text": "x"}], "usage": {"completion_tokens": 3}}),
        ("messages", {"stop_reason": "max_tokens", "usage": {"output_tokens": 3}}),
    ],
)
async def test_an_answer_without_a_stream(
    autojump_clock: MockClock, dialect: str, body: dict[str, Any]
) -> None:
    upstream = ScriptedUpstream(lambda _: [1.5, json.dumps(body)])
    sample = await endpoint(upstream, dialect, stream=False).ask("Hi", 3)
    assert (sample.error, sample.first, sample.completion_tokens) == (None, None, 3)
    assert sample.e2el == 1.5
    assert "stream" not in json.load_object(upstream.calls[0].body)


ERROR = {"error": {"code": "overloaded", "message": "full"}}


@pytest.mark.parametrize(
    ("status", "steps", "told"),
    [
        (429, [json.dumps(ERROR)], "429 overloaded"),
        (502, [b"<html>"], "502"),
        (200, [delta("x")], "cut short"),
        (200, [delta("x"), Broken("it stalled")], "broke off"),
        (200, [delta("x"), data(ERROR)], "overloaded"),
        (200, [b"data: {\n\n"], "no JSON"),
        (200, [700.0, b"data: [DONE]\n\n"], "took too long"),
        (200, [], "cut short"),
    ],
)
async def test_what_goes_wrong_is_told_in_a_few_words(
    autojump_clock: MockClock, status: int, steps: list[Step], told: str
) -> None:
    upstream = ScriptedUpstream(lambda _: list(steps), status=status)
    sample = await endpoint(upstream).ask("Hi", 3)
    assert sample.error == told
    assert upstream.under_way == 0


async def test_a_refused_connection_is_told(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat, refuses=True)
    assert (await endpoint(upstream).ask("Hi", 3)).error == "connection refused"


@pytest.mark.parametrize("body", [b"[]", b"nonsense"])
async def test_an_answer_that_is_none_is_told(autojump_clock: MockClock, body: bytes) -> None:
    upstream = ScriptedUpstream(lambda _: [body])
    assert (await endpoint(upstream, stream=False).ask("Hi", 3)).error == "no JSON"


@pytest.mark.parametrize("dialect", ["chat", "messages"])
@pytest.mark.parametrize(
    "event",
    [
        {"choices": ["x"]},
        {"choices": 5},
        {"choices": [{"delta": "x"}]},
        {"type": "message_start", "message": "x"},
        {"usage": []},
    ],
)
async def test_an_event_of_another_shape_is_no_output(
    autojump_clock: MockClock, dialect: str, event: Any
) -> None:
    upstream = ScriptedUpstream(lambda _: [data(event)])
    sample = await endpoint(upstream, dialect).ask("Hi", 3)
    assert (sample.first, sample.error) == (None, "cut short")


async def test_what_an_endpoint_calls_an_error_is_short_and_moves_no_cursor(
    autojump_clock: MockClock,
) -> None:
    told = {"type": "error", "error": {"code": "\x1b[2J" + "x" * 1000}}
    upstream = ScriptedUpstream(lambda _: [data(told)])
    error = (await endpoint(upstream).ask("Hi", 3)).error
    assert error is not None
    assert error.isprintable()
    assert len(error) < 100


async def test_as_many_are_under_way_as_is_wanted(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    window = await measure(endpoint(upstream), Cell(4, 8, 5), Amount(10), lambda: "Hi")
    assert (upstream.most, len(window.samples)) == (4, 10)
    assert window.seconds == pytest.approx(3 * 0.41)  # ten in fours are three rounds
    found = figures(window.samples, window.seconds)
    assert found["requests_s"] == pytest.approx(10 / 1.23)
    assert found["output_tokens_s"] == pytest.approx(50 / 1.23)
    assert found["ttft_p99"] == pytest.approx(200)
    assert found["itl_p50"] == pytest.approx(50)
    assert found["e2el_mean"] == pytest.approx(410)


async def test_a_time_ends_the_asking_and_not_the_answers(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    window = await measure(endpoint(upstream), Cell(2, 8, 5), Amount(seconds=1.0), lambda: "Hi")
    assert len(window.samples) == 6  # begun at 0, 0.41 and 0.82
    assert window.seconds == pytest.approx(1.23)
    assert upstream.under_way == 0


async def test_the_clients_own_share_is_told(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    busy = iter((10.0, 10.205))
    window = await measure(
        endpoint(upstream), Cell(1, 8, 5), Amount(1), lambda: "Hi", cpu_time=lambda: next(busy)
    )
    assert window.cpu == pytest.approx(0.5)


async def test_an_endpoint_that_refuses_is_not_asked_in_a_tight_loop(
    autojump_clock: MockClock,
) -> None:
    upstream = ScriptedUpstream(chat, refuses=True)
    await measure(endpoint(upstream), Cell(1, 8, 5), Amount(seconds=1.0), lambda: "Hi")
    assert len(upstream.calls) == pytest.approx(20, abs=1)


async def test_the_endpoint_tells_how_it_counts(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    assert await calibrate(endpoint(upstream), Prompts()) == (Length(2.0, 7.0), None)
    silent = ScriptedUpstream(lambda _: [delta("x"), b"data: [DONE]\n\n"])
    assert await calibrate(endpoint(silent), Prompts()) == (None, None)
    refusing = ScriptedUpstream(chat, refuses=True)
    assert await calibrate(endpoint(refusing), Prompts()) == (None, "connection refused")


async def test_a_whole_run(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    said: list[str] = []
    plan = Plan([Cell(1, 47, 5), Cell(3, 47, 5)], 2, Amount(6), objectives=Objectives(ttft=0.25))
    one, three = await run(endpoint(upstream), plan, said.append)
    assert one.spreads["prompt_tokens"].median == 47  # 20 words of two, and 7
    assert one.spreads["requests_s"].median == pytest.approx(1 / 0.41)
    assert three.spreads["requests_s"].median == pytest.approx(3 / 0.41)
    assert three.spreads["goodput_s"] == three.spreads["requests_s"]
    assert three.spreads["ttft_p50"].noise == pytest.approx(0)
    assert len(upstream.calls) == 2 + (1 + 12) + (3 + 12)  # calibration, warm-up, repeats
    asked = [json.load_object(call.body)["messages"][0]["content"] for call in upstream.calls]
    assert len(set(asked)) == len(asked)
    assert any(line.startswith("c=3 47+5: 2 of 2") for line in said)


async def test_a_shared_prefix_is_measured_in_tokens(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat)
    plan = Plan([Cell(1, 107, 1)], 1, Amount(5), warm_up=0, shared_prefix=40)
    await run(endpoint(upstream), plan, lambda _: None)
    asked = [json.load_object(call.body)["messages"][0]["content"] for call in upstream.calls[2:]]
    assert len({tuple(each.split()[:20]) for each in asked}) == 1
    assert len({tuple(each.split()[20:]) for each in asked}) == 5


async def test_an_endpoint_that_does_not_answer_ends_the_run(autojump_clock: MockClock) -> None:
    upstream = ScriptedUpstream(chat, refuses=True)
    with pytest.raises(Failed, match="connection refused"):
        await run(endpoint(upstream), Plan([Cell(1, 8, 8)]), lambda _: None)


async def test_errors_are_counted_by_kind(autojump_clock: MockClock) -> None:
    turns = iter(range(100))

    def sometimes(body: dict[str, Any]) -> list[Step]:
        return [Broken("x")] if next(turns) % 3 == 2 else chat(body)

    plan = Plan([Cell(1, 20, 2)], 1, Amount(6), warm_up=0)
    (result,) = await run(endpoint(ScriptedUpstream(sometimes)), plan, lambda _: None)
    assert result.errors == {"broke off": 2}
    assert result.spreads["errors"].median == 2


def test_how_much_is_asked_if_nobody_says() -> None:
    cell = Cell(32, 8, 8)
    assert amount_for(Plan([cell]), cell) == Amount(128)
    assert amount_for(Plan([cell]), Cell(1, 8, 8)) == Amount(16)
    assert amount_for(Plan([cell], amount=Amount(seconds=2)), cell) == Amount(seconds=2)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://x:1", "http://x:1"),
        ("http://x:1/", "http://x:1"),
        ("http://x/v1", "http://x"),
        ("http://x/v1/", "http://x"),
        ("http://x/api/v1", "http://x/api"),
    ],
)
def test_the_endpoint_may_be_given_as_clients_have_it(url: str, base: str) -> None:
    assert base_of(url).rstrip("/") == base
