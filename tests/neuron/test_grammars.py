"""Which grammar a request gets, and how compiling is kept from doing harm."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import attrs
import pytest
import trio
from fakes.demo_neuron import WEATHER, DemoNeuron, user
from fakes.served_neuron import demo_text

from cortex.errors import BadRequest, Overloaded
from cortex.neuron import grammars as module
from cortex.neuron.grammars import Grammars, chat_source
from cortex.neuron.prompt import Prompt
from cortex.text.grammar.compiler import Matcher
from cortex.text.grammar.source import Source
from cortex.text.grammar.thinking import AfterThinking, Phase
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest, CompletionRequest

SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}


def chat(**fields: Any) -> ChatRequest:
    return structure({"model": "m", "messages": user("Hi"), **fields}, ChatRequest)


def names(wish: Source | None) -> list[str] | None:
    return None if wish is None else [name for name, _ in wish.parts]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, None),
        ({"tools": [WEATHER]}, None),
        ({"response_format": SCHEMA}, ["start"]),
        ({"structured": {"regex": "a"}}, ["start"]),
        ({"tools": [WEATHER], "tool_choice": "required"}, ["start"]),
        ({"tools": [WEATHER], "response_format": SCHEMA}, ["start", "content", "calls"]),
        ({"tools": [WEATHER], "response_format": SCHEMA, "tool_choice": "none"}, ["start"]),
        ({"tools": [WEATHER], "response_format": SCHEMA, "tool_choice": "required"}, ["start"]),
        ({"tools": [STRICT]}, ["start", "calls"]),
        ({"tools": [STRICT], "tool_choice": "none"}, None),
    ],
    ids=str,
)
def test_what_is_asked_for_decides_the_grammar(fields: dict[str, Any], parts: Any) -> None:
    assert names(chat_source(demo_text(), chat(**fields))) == parts


def test_a_forced_call_is_not_a_matter_of_the_content() -> None:
    asked = chat(tools=[WEATHER], tool_choice=NAMED, response_format=SCHEMA)
    wish = chat_source(demo_text(), asked)
    assert wish is not None
    assert wish.parts[0][1].param == "tools"
    assert "get_weather" in wish.text


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_without_a_known_format_no_call_can_be_forced(choice: Any) -> None:
    text = attrs.evolve(demo_text(), tool_format=None)
    with pytest.raises(BadRequest) as caught:
        chat_source(text, chat(tools=[WEATHER], tool_choice=choice))
    assert caught.value.param == "tool_choice"
    assert names(chat_source(text, chat(tools=[WEATHER], response_format=SCHEMA))) == ["start"]
    assert chat_source(text, chat(tools=[STRICT])) is None


async def test_a_guide_begins_where_the_prompt_ends() -> None:
    text, grammars = demo_text(), Grammars()
    assert text.markers is not None
    encode = text.tokenizer.encode
    guide = await grammars.chat(text, chat(response_format=SCHEMA))
    assert guide is not None
    for prompt, in_reasoning, phase in (
        ("<|im_start|>assistant\n", False, Phase.BEFORE),
        ("<|im_start|>assistant\n<think>\n", True, Phase.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False, Phase.ANSWER),
    ):
        held = guide.constraint(Prompt(tuple(encode(prompt, special=True)), in_reasoning))
        assert isinstance(held, AfterThinking)
        assert held.phase is phase
    assert isinstance(guide.answer(), Matcher)
    going_on = await grammars.chat(text, chat(response_format=SCHEMA, continue_final_message=True))
    assert going_on is not None
    assert isinstance(going_on.constraint(Prompt((1,))), Matcher)


async def test_what_asks_for_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be compiled")

    monkeypatch.setattr(module, "GrammarCompiler", never)
    assert await Grammars().chat(demo_text(), chat(tools=[WEATHER])) is None
    raw = structure({"model": "m", "prompt": "x"}, CompletionRequest)
    assert await Grammars().completion(demo_text(), raw) is None


async def test_compiling_too_long_is_refused_and_others_are_not_kept_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def stuck(*_: Any) -> Source | None:
        assert gate.wait(20)
        return None

    monkeypatch.setattr(module, "chat_source", stuck)
    grammars = Grammars(0.05)
    found: list[type[Exception]] = []

    async def one() -> None:
        try:
            await grammars.chat(demo_text(), chat(response_format=SCHEMA))
        except (BadRequest, Overloaded) as exc:
            found.append(type(exc))

    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(module.COMPILERS + 1):
                    nursery.start_soon(one)
    finally:
        gate.set()
    assert sorted(kind.__name__ for kind in found) == ["BadRequest"] * module.COMPILERS + [
        "Overloaded"
    ]


async def test_what_was_built_for_a_model_goes_with_its_text() -> None:
    grammars = Grammars()
    text = attrs.evolve(demo_text())
    await grammars.chat(text, chat(response_format=SCHEMA))
    assert len(grammars._compilers) == 1
    gone = weakref.ref(text)
    del text
    gc.collect()
    assert gone() is None
    assert len(grammars._compilers) == 0


def test_an_answer_after_thinking_that_was_cut_off_is_held_too(demo: DemoNeuron) -> None:
    body = demo.chat(
        "What is a neuron?",
        temperature=0,
        max_tokens=100,
        chat_template_kwargs={"enable_thinking": True},
        thinking={"budget_tokens": 3},
        structured={"choice": ["42 apples", "7 pears"]},
    )
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] in ("42 apples", "7 pears")
    assert choice["message"]["reasoning_content"]
