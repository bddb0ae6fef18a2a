"""A request cut into completions: indices, seeds, budgets, callers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes.served_neuron import END, demo_text
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import BadRequest, ContextLengthExceeded
from cortex.neuron.job import MAX_COMPLETIONS, Caller, chat_job, completion_job
from cortex.neuron.prompt import Prompt
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest, CompletionRequest

ANYONE = Caller()
PROMPT = Prompt((1, 2, 3))


def model(context: int = 100) -> Any:
    """What a job reads of a loaded model."""
    return SimpleNamespace(text=demo_text(), max_context=context)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return structure(body, ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return structure({"model": "m", "prompt": "hi", **fields}, CompletionRequest)


def test_choices_are_numbered_prompt_by_prompt() -> None:
    prompts = [Prompt((1,)), Prompt((2, 2)), Prompt((3,))]
    job = completion_job(model(), completion(n=2), prompts, ANYONE)
    assert [c.index for c in job.completions] == [0, 1, 2, 3, 4, 5]
    assert [c.request.prompt[0] for c in job.completions] == [1, 1, 2, 2, 3, 3]
    assert list(job.prompt_tokens) == [1, 2, 1]
    assert len({c.request.id for c in job.completions}) == 6


def test_seeded_choices_differ_from_each_other_and_not_from_a_second_run() -> None:
    def seeds() -> list[int | None]:
        job = chat_job(model(), chat(n=3, seed=2**63 - 1), PROMPT, ANYONE)
        return [c.request.sampling.seed for c in job.completions]

    assert len(set(seeds())) == 3
    assert seeds() == seeds()


def test_without_a_seed_no_choice_has_one() -> None:
    job = chat_job(model(), chat(n=2), PROMPT, ANYONE)
    assert [c.request.sampling.seed for c in job.completions] == [None, None]


def test_more_completions_than_the_bound_are_refused() -> None:
    prompts = [PROMPT] * (MAX_COMPLETIONS // 2)
    assert len(completion_job(model(), completion(n=2), prompts, ANYONE).completions) == 128
    with pytest.raises(BadRequest) as raised:
        completion_job(model(), completion(n=2), [*prompts, PROMPT], ANYONE)
    assert raised.value.param == "n"


def test_every_end_of_the_model_is_a_stop_id() -> None:
    request = chat_job(model(), chat(), PROMPT, ANYONE).completions[0].request
    assert END in request.stop_ids
    assert len(request.stop_ids) == 2
    assert not request.ignore_eos
    assert (
        chat_job(model(), chat(ignore_eos=True), PROMPT, ANYONE).completions[0].request.ignore_eos
    )


def test_min_tokens_are_at_most_what_may_be_generated() -> None:
    job = chat_job(model(), chat(min_tokens=50, max_tokens=10), PROMPT, ANYONE)
    assert job.completions[0].request.min_tokens == 10


def test_nothing_to_generate_still_runs_the_prompt() -> None:
    job = completion_job(model(), completion(max_tokens=0, echo=True), [PROMPT], ANYONE)
    (one,) = job.completions
    assert one.prompt_only
    assert one.request.max_tokens == 1
    (usual,) = completion_job(model(), completion(max_tokens=1), [PROMPT], ANYONE).completions
    assert not usual.prompt_only


def test_one_prompt_of_several_that_is_too_long_refuses_the_request() -> None:
    with pytest.raises(ContextLengthExceeded):
        completion_job(model(4), completion(), [Prompt((1,)), Prompt((1,) * 4)], ANYONE)


def test_a_gateway_names_its_caller() -> None:
    caller = Caller.from_headers(
        {"x-cortex-caller": "team", "x-cortex-salt": "s", "x-cortex-priority": "-3"}
    )
    assert caller == Caller("team", b"s", -3, by_gateway=True)
    request = chat_job(model(), chat(), PROMPT, caller).completions[0].request
    assert (request.caller, request.salt, request.priority) == ("team", b"s", -3)


def test_without_a_gateway_there_is_one_anonymous_caller() -> None:
    assert Caller.from_headers({}) == Caller("", b"", 0, by_gateway=False)


@given(
    name=st.text(max_size=300),
    salt=st.text(st.characters(max_codepoint=255), max_size=300),
    priority=st.text(st.characters(max_codepoint=255), max_size=8)
    | st.sampled_from(["--5", "-", "²", "1_0", " 1", "99999", "-99999", "100000"]),
)
def test_no_header_is_an_error(name: str, salt: str, priority: str) -> None:
    headers = {"x-cortex-caller": name, "x-cortex-salt": salt, "x-cortex-priority": priority}
    caller = Caller.from_headers(headers)
    assert len(caller.name) <= 256
    assert len(caller.salt) <= 256
    assert abs(caller.priority) <= 99_999


def test_calls_that_are_forbidden_cannot_be_begun() -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    opener = demo_text().tokenizer.token_id("<tool_call>")

    def biases(**fields: Any) -> dict[int, float]:
        job = chat_job(model(), chat(tools=[tool], logit_bias={"5": 1}, **fields), PROMPT, ANYONE)
        return dict(job.completions[0].request.sampling.logit_bias)

    assert biases() == {5: 1}
    forbidden = biases(tool_choice="none")
    assert (forbidden.pop(opener), forbidden[5]) == (-100, 1)
