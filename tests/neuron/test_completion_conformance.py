"""``/v1/completions`` and ``/tokenize`` of a whole neuron, with a real small model."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.demo_neuron import THINKING, WEATHER, DemoNeuron, user

ROUTE = "/v1/completions"
PROMPT = "A neuron runs on each GPU host. It discovers"


def tokens_of(demo: DemoNeuron, prompt: str) -> list[int]:
    tokens: list[int] = demo.ask("/tokenize", {"prompt": prompt, "return_tokens": True}).json()[
        "tokens"
    ]
    return tokens


def test_text_and_its_tokens_are_the_same_prompt(demo: DemoNeuron) -> None:
    tokens = tokens_of(demo, PROMPT)
    of_text, of_tokens = demo.complete(PROMPT), demo.complete(tokens)
    assert of_text["object"] == "text_completion"
    assert of_text["choices"][0]["text"] == of_tokens["choices"][0]["text"]
    assert of_text["usage"]["prompt_tokens"] == len(tokens)
    assert of_text["usage"]["completion_tokens"] <= 16
    assert set(of_text["choices"][0]) >= {"text", "index", "logprobs", "finish_reason"}


def test_each_of_several_prompts_has_its_choices_in_order(demo: DemoNeuron) -> None:
    prompts = ["What is", "The gateway", "A neuron"]
    body = demo.complete(prompts, n=2, temperature=0, max_tokens=5)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = demo.complete(prompt, temperature=0, max_tokens=5)["choices"][0]["text"]
        assert [c["text"] for c in body["choices"][2 * number : 2 * number + 2]] == [alone] * 2
    counts = [len(tokens_of(demo, prompt)) for prompt in prompts]
    assert body["usage"]["prompt_tokens"] == sum(counts)


def test_lists_of_token_ids_are_several_prompts(demo: DemoNeuron) -> None:
    body = demo.complete([tokens_of(demo, "What is"), tokens_of(demo, "A neuron")], max_tokens=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]


def test_the_prompt_is_echoed_with_its_logprobs(demo: DemoNeuron) -> None:
    body = demo.complete(PROMPT, echo=True, logprobs=2, max_tokens=4)
    (choice,) = body["choices"]
    assert choice["text"].startswith(PROMPT)
    assert len(choice["text"]) > len(PROMPT)
    table = choice["logprobs"]
    assert "".join(table["tokens"]) == choice["text"]
    assert len(table["tokens"]) == body["usage"]["total_tokens"]
    assert table["token_logprobs"][0] is None
    assert table["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in table["token_logprobs"][1:])
    assert all(len(best) == 2 for best in table["top_logprobs"][1:])
    offsets = table["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert demo.complete(PROMPT, echo=True, max_tokens=4)["choices"][0]["text"] == choice["text"]


def test_sixteen_tokens_are_generated_where_no_limit_is_given(demo: DemoNeuron) -> None:
    assert demo.complete(PROMPT, ignore_eos=True)["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", ["日本 😀 x", "é à la carte"])
def test_offsets_point_into_the_text_whatever_its_characters(demo: DemoNeuron, prompt: str) -> None:
    (choice,) = demo.complete(prompt, echo=True, logprobs=1, max_tokens=6)["choices"]
    table = choice["logprobs"]
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert choice["text"][offset : offset + len(token)] == token


def test_min_tokens_ignore_eos_and_bias_count_here_too(demo: DemoNeuron) -> None:
    (token,) = tokens_of(demo, "a")
    forced = demo.complete(PROMPT, logit_bias={str(token): 100}, max_tokens=3)
    assert forced["choices"][0]["text"] == "aaa"
    long = demo.complete(PROMPT, min_tokens=40, max_tokens=60, temperature=0)
    assert long["usage"]["completion_tokens"] >= 40


def test_a_stop_string_is_told_and_left_out(demo: DemoNeuron) -> None:
    whole = demo.complete(PROMPT, temperature=0, max_tokens=12)["choices"][0]["text"]
    stop = whole[5:8]
    (choice,) = demo.complete(PROMPT, temperature=0, max_tokens=12, stop=[stop, "\x00"])["choices"]
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_a_prompt_can_be_scored_without_generating(demo: DemoNeuron) -> None:
    body = demo.complete(PROMPT, echo=True, max_tokens=0, logprobs=1)
    (choice,) = body["choices"]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0
    count = body["usage"]["prompt_tokens"]
    assert len(choice["logprobs"]["token_logprobs"]) == count
    whole = demo.complete(PROMPT, echo=True, max_tokens=3, logprobs=1)["choices"][0]["logprobs"]
    scored = choice["logprobs"]["token_logprobs"][1:]
    assert scored == pytest.approx(whole["token_logprobs"][1:count], abs=1e-3)
    assert demo.complete(PROMPT, max_tokens=0)["choices"][0]["text"] == ""


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"echo": True}, {"logprobs": 1}, {"echo": True, "logprobs": 1}, {"stop": "a"}],
    ids=str,
)
def test_a_stream_adds_up_to_the_whole_answer(demo: DemoNeuron, fields: dict[str, Any]) -> None:
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, **fields}
    whole = demo.ask(ROUTE, asked).json()
    chunks = demo.stream(ROUTE, **asked, stream_options={"include_usage": True})
    assert chunks.pop() == "[DONE]"
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(c["object"] == "text_completion" and c["usage"] is None for c in chunks)
    assert "timings" in chunks[-1]
    for index, choice in enumerate(whole["choices"]):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1]["stop_reason"] == choice["stop_reason"]
        tables = [part["logprobs"] for part in own if part["logprobs"]]
        for key in ("tokens", "text_offset") if choice["logprobs"] else ():
            joined = [row for table in tables for row in table[key]]
            assert joined == choice["logprobs"][key]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": ["a"] * 5000}, "prompt"),
        ({"prompt": None}, None),
        ({"suffix": "x"}, "suffix"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_request_is_refused(
    demo: DemoNeuron, fields: dict[str, Any], param: str | None
) -> None:
    response = demo.ask(ROUTE, {"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert param is None or error["param"] == param


# Counting


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"chat_template_kwargs": THINKING},
        {"reasoning_effort": "high"},
        {"messages": [{"role": "system", "content": "x"}, *user("y")]},
        {"messages": [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]},
        {
            "messages": [*user("a"), {"role": "assistant", "content": "b"}],
            "continue_final_message": True,
        },
    ],
    ids=lambda value: str(value)[:50],
)
def test_counting_says_what_the_request_will_use(demo: DemoNeuron, fields: dict[str, Any]) -> None:
    body = {"messages": user("How is the weather?"), **fields}
    used = demo.ask("/v1/chat/completions", {**body, "max_tokens": 1}).json()["usage"]
    answer = demo.ask("/tokenize", body)
    assert answer.json() == {"count": used["prompt_tokens"]}


def test_counting_gives_the_tokens_where_asked(demo: DemoNeuron) -> None:
    answer = demo.ask("/tokenize", {"prompt": PROMPT, "return_tokens": True}).json()
    assert answer["count"] == len(answer["tokens"]) > 5


def test_counting_needs_the_files_alone(demo: DemoNeuron) -> None:
    """A load's spec says where they are; nothing is loaded by it."""
    body = {"model": "other/name", "source": "demo", "prompt": PROMPT}
    answer = demo.client.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == demo.ask("/tokenize", {"prompt": PROMPT}).json()
    assert "other/name" not in {model["id"] for model in demo.client.get("/models").json()}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"messages": []}, 400),
        ({"messages": user("a"), "prompt": "a"}, 400),
        ({"prompt": "a", "model": "no/such"}, 404),
        ({"prompt": 5}, 400),
    ],
    ids=str,
)
def test_what_cannot_be_counted_is_refused(
    demo: DemoNeuron, fields: dict[str, Any], status: int
) -> None:
    assert demo.ask("/tokenize", fields).status_code == status
