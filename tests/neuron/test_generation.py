"""Engine events to updates: text, logprobs, ends, and the numbers of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from fakes.engine import FakeEngine
from fakes.served_neuron import END, MODEL, ScriptedEngine, demo_text, ids, served, until

from cortex.engine.request import (
    Event,
    FinishReason,
    FirstToken,
    Request,
    RequestFailed,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from cortex.errors import CortexError, InternalError, Unavailable
from cortex.neuron.generation import Completion, Update, run_all, timings, usage
from cortex.text.deltas import ContentDelta, OutputParser

STOPS = frozenset({END})


def completion(
    index: int = 0,
    *,
    prompt: Sequence[int] = (5, 6, 7),
    stops: Sequence[str] = (),
    max_tokens: int = 50,
    logprobs: int | None = None,
    **fields: Any,
) -> Completion:
    request = Request(
        f"r{index}",
        tuple(prompt),
        SamplingParams(temperature=0.0, logprobs=logprobs),
        max_tokens,
        stop_ids=STOPS,
    )
    return Completion(index, request, OutputParser(demo_text().tokenizer, stops=stops), **fields)


async def said(engine: FakeEngine, *completions: Completion) -> list[tuple[int, Update]]:
    """What running *completions* on *engine* hands on."""
    updates: list[tuple[int, Update]] = []

    async def sink(index: int, update: Update) -> None:
        updates.append((index, update))

    failure: CortexError | None = None
    async with served(lambda: engine) as neuron:
        with neuron.lifecycle.lease(MODEL) as model:
            try:
                await run_all(completions, model.engine, sink)
            except CortexError as exc:
                failure = exc  # raised where no nursery puts it into a group
        await until(lambda: not engine.running)
    if failure is not None:
        raise failure
    return updates


def text_of(updates: Sequence[tuple[int, Update]], index: int = 0) -> str:
    return "".join(
        delta.text
        for of, update in updates
        for delta in update.deltas
        if of == index and isinstance(delta, ContentDelta)
    )


async def test_the_end_token_ends_the_text_and_is_none_of_it() -> None:
    one = completion()
    updates = await said(ScriptedEngine(script=[*ids("Hello there."), END]), one)
    assert text_of(updates) == "Hello there."
    assert one.finish == "stop" == updates[-1][1].finish
    assert one.tokens == len(ids("Hello there.")) + 1
    assert [update.finish for _, update in updates[:-1]] == [None] * (len(updates) - 1)


async def test_the_limit_ends_with_length() -> None:
    one = completion(max_tokens=2)
    await said(ScriptedEngine(script=ids("Hello there, you.")), one)
    assert (one.finish, one.tokens) == ("length", 2)


@pytest.mark.parametrize("stop", ["there", "o th", "ere, y", "Hello"])
async def test_a_stop_string_ends_the_text_before_it_wherever_tokens_are_cut(stop: str) -> None:
    text = "Hello there, you."
    one = completion(stops=["never", stop])
    updates = await said(ScriptedEngine(script=[*ids(text), END]), one)
    assert text_of(updates) == text[: text.index(stop)]
    assert one.finish == "stop"
    assert one.parser.matched_stop == stop


async def test_a_stop_string_frees_the_engine() -> None:
    engine = ScriptedEngine(script=[*ids("one two three"), *[ids("x")[0]] * 500])
    async with served(lambda: engine) as neuron:
        with neuron.lifecycle.lease(MODEL) as model:

            async def sink(index: int, update: Update) -> None: ...

            await completion(stops=["two"], max_tokens=900).run(model.engine, sink)
        await until(lambda: not engine.running)


async def test_characters_are_never_split() -> None:
    text = "日本 👩‍👩‍👧 ok é"
    updates = await said(ScriptedEngine(script=[*ids(text), END]), completion())
    assert text_of(updates) == text
    assert all("\ufffd" not in d.text for _, u in updates for d in u.deltas)  # type: ignore[union-attr]


async def test_each_token_has_one_logprob_even_while_its_text_is_held() -> None:
    text = ids("Hello 日本 there")
    one = completion(stops=["there!"], logprobs=0)
    updates = await said(ScriptedEngine(script=[*text, END]), one)
    assert [entry.token for _, update in updates for entry in update.logprobs] == text
    assert text_of(updates) == "Hello 日本 there"


async def test_a_prompt_that_is_only_to_be_read_generates_nothing() -> None:
    one = completion(max_tokens=1, prompt_only=True)
    updates = await said(ScriptedEngine(script=ids("word")), one)
    assert text_of(updates) == ""
    assert updates[0][1].first is not None
    assert (one.tokens, one.finish) == (0, "length")


async def test_several_completions_keep_apart() -> None:
    prompts = [ids("first words here"), ids("second ones there")]
    several = [completion(k, prompt=p, max_tokens=len(p)) for k, p in enumerate(prompts)]
    updates = await said(FakeEngine(), *several)
    assert [text_of(updates, k) for k in (0, 1)] == ["first words here", "second ones there"]


async def test_a_failure_of_the_request_is_told_as_ours_with_its_cause() -> None:
    engine = ScriptedEngine(script=[*ids("Hello"), ZeroDivisionError("bug")])
    with pytest.raises(InternalError) as raised:
        await said(engine, completion())
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "bug" not in raised.value.message


async def test_an_error_with_an_answer_is_told_as_it_is() -> None:
    with pytest.raises(Unavailable, match="not now"):
        await said(ScriptedEngine(script=[Unavailable("not now")]), completion())


@attrs.define(eq=False, slots=False)
class OneFails(FakeEngine):
    """Fails the request r1 at its fourth token."""

    def _next(self, request: Request, done: int) -> Any:
        if request.id == "r1" and done == 3:
            del self.running[request.id]
            return RequestFailed(request.id, Unavailable("gone"))
        return super()._next(request, done)


async def test_one_failure_ends_all_completions_of_a_request() -> None:
    engine = OneFails(max_context=10**6)
    with pytest.raises(Unavailable, match="gone"):
        await said(engine, *(completion(k, max_tokens=10**5) for k in range(3)))
    assert not engine.running


async def test_leaving_aborts_what_runs() -> None:
    engine = FakeEngine(max_context=10**6)
    async with served(lambda: engine) as neuron, trio.open_nursery() as nursery:
        seen = trio.Event()

        async def sink(index: int, update: Update) -> None:
            seen.set()

        with neuron.lifecycle.lease(MODEL) as model:
            both = [completion(k, max_tokens=10**5) for k in range(2)]
            nursery.start_soon(run_all, both, model.engine, sink)
            await seen.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: not engine.running, 1.0)


class Handle:
    """An engine handle that gives prepared batches of events."""

    def __init__(self, *batches: list[Event]) -> None:
        self.batches = batches

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[Any]:
        send, receive = trio.open_memory_channel[list[Event]](len(self.batches))
        with send, receive:
            for batch in self.batches:
                send.send_nowait(batch)
            send.close()
            yield receive


def token(number: int, finish: FinishReason | None = None, cached: int | None = None) -> TokenEvent:
    first = None if cached is None else FirstToken(cached, 12.0, None)
    return TokenEvent("r0", number, finish, TokenLogprob(number, -0.5, ()), first)


async def run(one: Completion, *batches: list[Event]) -> list[Update]:
    updates: list[Update] = []

    async def sink(index: int, update: Update) -> None:
        updates.append(update)

    handle: Any = Handle(*batches)
    await one.run(handle, sink)
    return updates


async def test_a_batch_of_several_tokens_is_one_update() -> None:
    hello = ids("Hello there")
    one = completion()
    last = token(END, FinishReason.STOP)
    updates = await run(one, [token(hello[0], cached=2), *map(token, hello[1:])], [last])
    assert [[entry.token for entry in u.logprobs] for u in updates] == [hello, []]
    assert (one.cached_tokens, one.tokens) == (2, len(hello) + 1)


async def test_an_engine_that_ends_without_a_reason_is_a_bug() -> None:
    with pytest.raises(InternalError, match="without saying why"):
        await run(completion(), [token(ids("a")[0], cached=0)])


async def test_timings_tell_queue_prefill_and_decode() -> None:
    ticks = iter([10.0, 13.0, 13.0, 14.5])
    a, b = ids("a")[0], ids("b")[0]
    one = completion(clock=lambda: next(ticks))
    await run(one, [token(a, cached=4)], [token(b, FinishReason.LENGTH)])
    told = timings([one], 9)
    assert (told.queue_ms, told.prefill_ms, told.decode_ms) == (2000.0, 1000.0, 1500.0)
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (9, 4, 2)


def counted(index: int, tokens: int, cached: int, reasoning: int = 0) -> Completion:
    one = completion(index)
    one.tokens, one.cached_tokens, one.parser.reasoning_tokens = tokens, cached, reasoning
    return one


def test_usage_counts_each_prompt_once_and_every_completion() -> None:
    told = usage(
        [10, 20], [counted(0, 3, 8), counted(1, 4, 9), counted(2, 5, 16), counted(3, 6, 19)]
    )
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (30, 18, 48)
    assert told["prompt_tokens_details"] == {"cached_tokens": 8 + 16}
    assert "completion_tokens_details" not in told


def test_usage_tells_reasoning_where_there_was_some() -> None:
    told = usage([10], [counted(0, 3, 0, 2), counted(1, 3, 0, 1)])
    assert told["completion_tokens_details"] == {"reasoning_tokens": 3}


async def test_a_token_that_makes_a_completion_whole_is_part_of_its_text() -> None:
    """The engine ends with STOP, and not by one of the model's ends."""

    class Whole(ScriptedEngine):
        def _next(self, request: Request, done: int) -> Event:  # type: ignore[override]
            event = super()._next(request, done)
            assert isinstance(event, TokenEvent)
            if done == 1:
                self.running.pop(request.id, None)
                return attrs.evolve(event, finish=FinishReason.STOP)
            return event

    (first, second, *_) = script = ids("one two three")
    one = completion()
    updates = await said(Whole(script=script), one)
    assert text_of(updates) == demo_text().tokenizer.decode([first, second])
    assert (one.finish, one.tokens) == ("stop", 2)
