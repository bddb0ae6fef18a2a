"""Thinking that has used its budget is closed, and the answer goes on as if the model had."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import trio
from fakes.checkpoints import write_checkpoint
from fakes.decoding import greedy_oracle
from fakes.demo_neuron import QUESTION, THINKING, DemoNeuron, chunks_of
from fakes.served_neuron import END, MODEL, ScriptedEngine, demo_text, ids, served, until

from cortex.engine.engine import Engine
from cortex.engine.load.checkpoint import open_engine
from cortex.engine.request import Event, Request, SamplingParams, TokenEvent, TokenLogprob
from cortex.neuron.generation import Completion, ThinkingBudget, Update
from cortex.text.closing import Closing
from cortex.text.deltas import OutputParser, ReasoningDelta
from cortex.text.reasoning import ReasoningMarkers

ROUTE = "/v1/chat/completions"
CLOSER = ids("\n</think>\n\n")
THOUGHT = ids("<think>\nthis and that and this and that")  # without an end of its own
ANSWER = ids("So be it.")


@attrs.define(eq=False, slots=False)
class Thinker(ScriptedEngine):
    """Thinks ``THOUGHT`` over and over; carried on behind a closer, it answers."""

    asked: list[Request] = attrs.field(factory=list)

    def add(self, request: Request) -> None:
        self.asked.append(request)
        super().add(request)

    def _next(self, request: Request, done: int) -> Event:
        own = request.prompt[len(request.prompt) - request.resumed :] if request.resumed else ()
        said = [*ANSWER, END]
        if tuple(CLOSER) != own[-len(CLOSER) :]:
            said = THOUGHT * 50
        self.script = said
        event = super()._next(request, done)
        if request.sampling.logprobs is not None and isinstance(event, TokenEvent):
            event = attrs.evolve(event, logprob=TokenLogprob(event.token, -0.5, ()))
        return event


def body(**fields: Any) -> dict[str, Any]:
    budget = {"budget_tokens": fields.pop("budget", 6)}
    messages = [{"role": "user", "content": "hi"}]
    return {"model": MODEL, "messages": messages, "thinking": budget, **fields}


async def answered(engine: Thinker, **fields: Any) -> Any:
    async with served(lambda: engine) as neuron:
        response = await neuron.client.post(ROUTE, json=body(**fields))
        assert response.status_code == 200, response.text
        await until(lambda: not engine.running)
        assert neuron.admission.seats(MODEL).taken == 0
    return response.json()


async def test_the_answer_comes_after_the_budget_and_all_of_it_adds_up() -> None:
    engine = Thinker()
    answer = await answered(engine, logprobs=True)
    (choice,) = answer["choices"]
    message = choice["message"]
    assert message["content"] == "So be it."
    assert message["reasoning_content"] == demo_text().tokenizer.decode(THOUGHT[1:6]).strip()
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 6 + len(CLOSER) + len(ANSWER) + 1
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 6 + len(CLOSER)
    assert answer["timings"]["completion_tokens"] == usage["completion_tokens"]
    # What was put in was not drawn: it has no logprob, everything else has one.
    told = [entry["token"] for entry in choice["logprobs"]["content"]]
    spelled = demo_text().tokenizer.token_bytes
    assert told == [spelled(token).decode() for token in THOUGHT[:6] + ANSWER]


async def test_the_request_that_carries_on_is_the_same_but_for_what_was_said() -> None:
    engine = Thinker()
    fields = {"max_tokens": 40, "min_tokens": 12, "seed": 5, "frequency_penalty": 0.5}
    answer = await answered(engine, temperature=1.1, **fields)
    first, second = engine.asked
    said = (*THOUGHT[:6], *CLOSER)
    assert second.prompt == first.prompt + said
    assert second.resumed == len(said)
    assert second.max_tokens == first.max_tokens - len(said) == 40 - len(said)
    assert second.min_tokens == first.min_tokens - len(said) == 12 - len(said)
    assert second.sampling == first.sampling
    assert (second.salt, second.caller, second.stop_ids) == (
        first.salt,
        first.caller,
        first.stop_ids,
    )
    assert answer["usage"]["prompt_tokens"] == len(first.prompt)


async def test_a_stream_says_what_the_whole_answer_says() -> None:
    whole = (await answered(Thinker()))["choices"][0]["message"]
    async with served(Thinker) as neuron:
        response = await neuron.client.post(ROUTE, json=body(stream=True))
        chunks = list(chunks_of(iter(response.text.split("\n"))))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(d.get("content", "") for d in deltas) == whole["content"]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == whole["reasoning_content"]
    assert "think>" not in response.text


async def test_each_of_several_choices_has_its_own_budget() -> None:
    engine = Thinker()
    answer = await answered(engine, n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["So be it."] * 2
    assert len({request.id for request in engine.asked}) == 4


async def test_thinking_shorter_than_its_budget_is_left_alone() -> None:
    script = [*ids("<think>\nok\n</think>\n\nSo be it."), END]
    async with served(lambda: ScriptedEngine(script=script)) as neuron:
        response = await neuron.client.post(ROUTE, json=body(budget=len(script)))
        history = neuron.engine.history
    assert response.json()["choices"][0]["message"]["content"] == "So be it."
    assert sum(line.startswith("add") for line in history) == 1


async def test_thinking_that_begins_again_is_closed_again() -> None:
    class Relapses(Thinker):
        def _next(self, request: Request, done: int) -> Event:
            event = super()._next(request, done)
            if len(self.asked) == 2 and isinstance(event, TokenEvent):
                return attrs.evolve(event, token=THOUGHT[0], finish=None)
            return event

    engine = Relapses()
    answer = await answered(engine)
    assert answer["choices"][0]["message"]["content"] == "So be it."
    assert len(engine.asked) == 3
    spent = 6 + len(CLOSER) + 1 + len(CLOSER)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == spent


@pytest.mark.parametrize("room", [1, len(CLOSER), len(CLOSER) + 1])
async def test_a_limit_that_leaves_no_room_for_an_answer_is_the_end(room: int) -> None:
    engine = Thinker()
    answer = await answered(engine, max_tokens=6 + room)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6 + room
    closed = room > len(CLOSER)
    assert len(engine.asked) == 1 + closed
    assert bool(choice["message"]["content"]) == closed


async def test_a_client_that_leaves_while_it_is_carried_on_frees_everything() -> None:
    engine = Thinker(max_context=10**6)
    async with served(lambda: engine) as neuron, trio.open_nursery() as nursery:
        fields = body(ignore_eos=True, max_tokens=10**5)
        nursery.start_soon(lambda: neuron.client.post(ROUTE, json=fields))
        await until(lambda: len(engine.asked) == 2)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: not engine.running)
            await until(lambda: neuron.admission.seats(MODEL).taken == 0)


# With real engines


class Direct:
    """An engine handle that steps a real engine where it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[Any]:
        self.engine.add(request)

        async def events() -> AsyncIterator[list[Event]]:
            while self.engine.has_work:
                await trio.lowlevel.checkpoint()
                if stepped := self.engine.step():
                    yield stepped

        async with aclosing(events()) as found:
            try:
                yield found
            finally:
                self.engine.abort(request.id)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


async def said(
    engine: Engine, prompt: Sequence[int], closing: Closing, budget: int, **fields: Any
) -> tuple[Completion, str]:
    request = Request("r", tuple(prompt), SamplingParams(**fields), max_tokens=30)
    markers = ReasoningMarkers(open=95, close=96)
    parser = OutputParser(demo_text().tokenizer, reasoning=markers, in_reasoning=True)
    one = Completion(0, request, parser, budget=ThinkingBudget(budget, closing))
    thought = ""

    async def sink(index: int, update: Update) -> None:
        nonlocal thought
        thought += "".join(d.text for d in update.deltas if isinstance(d, ReasoningDelta))

    handle: Any = Direct(engine)
    await one.run(handle, sink)
    return one, thought


@pytest.mark.parametrize("overlap", [False, True])
async def test_it_goes_on_as_a_model_that_had_closed_its_thinking_itself(
    tiny: Path, overlap: bool
) -> None:
    closing = Closing((10,), (96, 11, 12), demo_text().tokenizer)
    prompt = [(7 * n) % 90 for n in range(70)]
    engine = open_engine(tiny, device="cpu", dtype="float32", overlap=overlap)
    one, _ = await said(engine, prompt, closing, 8, temperature=0.0)
    thought = greedy_oracle(tiny, prompt, 8)
    assert 96 not in thought
    between = list(closing.after(thought[-1]))
    answer = greedy_oracle(tiny, prompt + thought + between, 22 - len(between))
    assert one.said == thought + between + answer
    assert (one.finish, one.tokens) == ("length", 30)
    assert one.parser.reasoning_tokens == 8 + len(between)
    stats = engine.stats()
    assert stats.prefix_hit_tokens >= 64  # the prompt's blocks were found again
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    engine.close()


async def test_a_seed_draws_the_same_with_and_without_the_cut(tiny: Path) -> None:
    """A closing that the model would have drawn itself changes nothing, penalties included."""
    prompt = [(5 * n) % 90 for n in range(40)]
    sampling = {"temperature": 0.9, "seed": 3, "presence_penalty": 1.0, "repetition_penalty": 1.2}
    engine = open_engine(tiny, device="cpu", dtype="float32")
    never = Closing((), (96,), demo_text().tokenizer)
    whole, _ = await said(engine, prompt, never, 1000, **sampling)
    # The tokens that would have come, in place of a closing; the marker is one of them.
    tail = tuple(whole.said[7:10])
    unused = next(token for token in range(97) if token not in whole.said)
    markers = ReasoningMarkers(open=unused, close=tail[0])
    assert tail[0] not in whole.said[:7]
    request = Request("r", tuple(prompt), SamplingParams(**sampling), max_tokens=30)
    parser = OutputParser(demo_text().tokenizer, reasoning=markers, in_reasoning=True)
    budget = ThinkingBudget(7, Closing((), tail, demo_text().tokenizer))
    one = Completion(0, request, parser, budget=budget)

    async def sink(index: int, update: Update) -> None: ...

    handle: Any = Direct(engine)
    await one.run(handle, sink)
    assert one.said == whole.said
    engine.close()


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_the_demonstration_model_answers_after_its_budget(demo: DemoNeuron, budget: int) -> None:
    free = demo.chat(temperature=0, chat_template_kwargs=THINKING)
    spent = free["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent > budget + len(CLOSER)
    fields = {"temperature": 0, "chat_template_kwargs": THINKING}
    cut = demo.chat(**fields, thinking={"budget_tokens": budget})
    message = cut["choices"][0]["message"]
    assert message["content"]
    assert "think>" not in message["content"]
    assert cut["choices"][0]["finish_reason"] == "stop"
    told = cut["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert budget < told <= budget + len(CLOSER)
    whole_thought = free["choices"][0]["message"]["reasoning_content"]
    assert whole_thought.startswith(message.get("reasoning_content", ""))
    chunks = demo.stream(**fields, thinking={"budget_tokens": budget})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


def test_a_budget_without_thinking_changes_nothing(demo: DemoNeuron) -> None:
    plain = demo.chat(temperature=0)["choices"][0]["message"]
    assert demo.chat(temperature=0, thinking={"budget_tokens": 1})["choices"][0]["message"] == plain
    for bad in (0, -1, "5", 1.5):
        response = demo.ask(
            ROUTE,
            {
                "messages": [{"role": "user", "content": QUESTION}],
                "thinking": {"budget_tokens": bad},
            },
        )
        assert response.status_code == 400
        assert json.loads(response.text)["error"]["param"] == "thinking.budget_tokens"
