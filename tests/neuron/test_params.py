"""Sampling defaults and token budgets."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.engine.load.generation import GenerationDefaults
from cortex.errors import BadRequest, ContextLengthExceeded
from cortex.neuron.params import (
    COMPLETION_TOKENS,
    FALLBACK_TEMPERATURE,
    budget,
    sampling_params,
    thinking_kwargs,
)
from cortex.text.template import EFFORTS, SWITCHES, TemplateFeatures
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest, CompletionRequest

SILENT = GenerationDefaults(frozenset(), None, None, None, None, None, None)
OWN = GenerationDefaults(frozenset(), 0.6, 20, 0.95, 0.05, 1.1, True)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return structure(body, ChatRequest)


def features(*switches: str, efforts: tuple[str, ...] = ()) -> TemplateFeatures:
    return TemplateFeatures(True, True, True, switches, efforts)


def completion(**fields: Any) -> CompletionRequest:
    return structure({"model": "m", "prompt": "hi", **fields}, CompletionRequest)


def test_what_nobody_says_is_the_fallback() -> None:
    params = sampling_params(chat(), SILENT, 100)
    assert params.temperature == FALLBACK_TEMPERATURE
    assert (params.top_k, params.top_p, params.min_p, params.repetition_penalty) == (0, 1, 0, 1)
    assert params.seed is None
    assert params.logprobs is None
    assert not params.prompt_logprobs


def test_the_models_defaults_apply_where_the_request_is_silent() -> None:
    params = sampling_params(chat(), OWN, 100)
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
    assert (params.min_p, params.repetition_penalty) == (0.05, 1.1)


def test_the_request_wins_over_the_model() -> None:
    asked = chat(temperature=1.5, top_k=7, top_p=0.5, min_p=0.2, repetition_penalty=1.3)
    params = sampling_params(asked, OWN, 100)
    assert (params.temperature, params.top_k, params.top_p) == (1.5, 7, 0.5)
    assert (params.min_p, params.repetition_penalty) == (0.2, 1.3)


def test_a_zero_of_the_request_is_no_silence() -> None:
    params = sampling_params(chat(temperature=0, top_k=0, min_p=0), OWN, 100)
    assert (params.temperature, params.top_k, params.min_p) == (0.0, 0, 0.0)


@pytest.mark.parametrize("asked", [-1, 0])
def test_top_k_of_minus_one_and_of_zero_is_off(asked: int) -> None:
    assert sampling_params(chat(top_k=asked), OWN, 100).top_k == 0


def test_a_model_that_does_not_sample_is_greedy_unless_asked() -> None:
    greedy = attrs.evolve(OWN, do_sample=False)
    assert sampling_params(chat(), greedy, 100).temperature == 0.0
    assert sampling_params(chat(temperature=0.9), greedy, 100).temperature == 0.9


def test_a_bias_on_a_token_beyond_the_vocabulary_is_refused() -> None:
    assert sampling_params(chat(logit_bias={"99": 5}), SILENT, 100).logit_bias == ((99, 5.0),)
    with pytest.raises(BadRequest) as raised:
        sampling_params(chat(logit_bias={"100": 5}), SILENT, 100)
    assert raised.value.param == "logit_bias"


@given(seed=st.integers(-(2**63), 2**63 - 1))
def test_every_seed_a_client_may_send_is_one_the_engine_takes(seed: int) -> None:
    got = sampling_params(chat(seed=seed), SILENT, 100).seed
    assert got is not None
    assert 0 <= got < 2**64


def test_logprobs_of_chat_need_the_switch_and_completions_the_number() -> None:
    assert sampling_params(chat(logprobs=True), SILENT, 9).logprobs == 0
    assert sampling_params(chat(logprobs=True, top_logprobs=3), SILENT, 9).logprobs == 3
    assert sampling_params(chat(logprobs=False), SILENT, 9).logprobs is None
    assert sampling_params(completion(logprobs=2), SILENT, 9).logprobs == 2


def test_prompt_logprobs_are_made_only_when_echo_shows_them() -> None:
    assert sampling_params(completion(echo=True, logprobs=0), SILENT, 9).prompt_logprobs
    assert not sampling_params(completion(echo=True), SILENT, 9).prompt_logprobs
    assert not sampling_params(completion(logprobs=1), SILENT, 9).prompt_logprobs


def test_without_a_limit_a_chat_has_all_the_room() -> None:
    assert budget(chat(), 30, 100).max_tokens == 70


def test_completions_have_sixteen_tokens_by_default() -> None:
    assert budget(completion(), 30, 100).max_tokens == COMPLETION_TOKENS == 16


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert budget(chat(max_tokens=5, max_completion_tokens=3), 1, 100).max_tokens == 3
    assert budget(chat(max_tokens=5), 1, 100).max_tokens == 5


@given(prompt=st.integers(1, 300), wanted=st.integers(1, 300), context=st.integers(1, 200))
def test_a_budget_is_within_wish_and_room(prompt: int, wanted: int, context: int) -> None:
    asked = chat(max_tokens=wanted)
    if prompt >= context:
        with pytest.raises(ContextLengthExceeded) as raised:
            budget(asked, prompt, context)
        assert str(prompt) in raised.value.message
        assert str(context) in raised.value.message
        return
    got = budget(asked, prompt, context)
    assert got.max_tokens == min(wanted, context - prompt)
    assert got.clamped == (wanted > context - prompt)


def test_an_overflow_is_an_error_with_the_numbers_where_the_request_says_so() -> None:
    asked = chat(max_tokens=80, on_overflow="error")
    assert budget(asked, 20, 100).max_tokens == 80
    with pytest.raises(ContextLengthExceeded) as raised:
        budget(asked, 21, 100)
    assert raised.value.extras == {"prompt_tokens": 21, "max_tokens": 80, "context": 100}
    assert raised.value.param == "max_tokens"


def test_a_prompt_without_room_names_the_field_it_came_in() -> None:
    with pytest.raises(ContextLengthExceeded) as of_chat:
        budget(chat(), 100, 100)
    with pytest.raises(ContextLengthExceeded) as of_completion:
        budget(completion(), 100, 100)
    assert of_chat.value.param == "messages"
    assert of_completion.value.param == "prompt"
    assert of_chat.value.extras["max_tokens"] is None


@pytest.mark.parametrize(
    ("effort", "thinks"),
    [("none", False), ("minimal", False), ("low", True), ("high", True), ("max", True)],
)
@pytest.mark.parametrize("switch", SWITCHES)
def test_effort_switches_thinking(switch: str, effort: str, thinks: bool) -> None:
    assert thinking_kwargs(None, effort, features(switch)) == {switch: thinks}


@pytest.mark.parametrize(
    ("takes", "asked", "given"),
    [
        (("low", "medium", "high"), "none", "low"),
        (("low", "medium", "high"), "max", "high"),
        (("none", "high"), "minimal", "none"),
        (("none", "high"), "medium", "high"),
        (EFFORTS, "xhigh", "xhigh"),
    ],
)
def test_a_template_is_given_an_effort_that_it_takes(
    takes: tuple[str, ...], asked: str, given: str
) -> None:
    assert thinking_kwargs(None, asked, features(efforts=takes)) == {"reasoning_effort": given}


def test_what_the_client_says_to_the_template_wins_over_effort() -> None:
    qwen = features("enable_thinking")
    assert thinking_kwargs({"enable_thinking": True}, "none", qwen) == {"enable_thinking": True}
    effort = features(efforts=EFFORTS)
    own = {"reasoning_effort": "odd"}
    assert thinking_kwargs(own, "low", effort) == own
    assert thinking_kwargs({"x": 1}, None, qwen) == {"x": 1}
    assert thinking_kwargs(None, None, qwen) == {}


def test_a_template_that_knows_no_switch_is_given_none() -> None:
    assert thinking_kwargs(None, "high", features()) == {}
