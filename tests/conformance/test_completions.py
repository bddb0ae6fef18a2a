"""CP: raw completions, with the real engine."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.checks import COMPLETIONS, Server


def test_cp01_a_prompt_is_continued(real: Server) -> None:
    body = real.complete("Once upon", max_tokens=4, temperature=0)
    assert body["object"] == "text_completion"
    assert type(body["created"]) is int
    (choice,) = body["choices"]
    assert set(choice) >= {"text", "index", "logprobs", "finish_reason"}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)


def test_cp02_prompt_by_prompt_choice_by_choice(real: Server) -> None:
    body = real.complete(["a", "b", "c"], n=2, max_tokens=2, temperature=0)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    texts = [choice["text"] for choice in body["choices"]]
    alone = real.complete("b", max_tokens=2, temperature=0)["choices"][0]["text"]
    assert texts[2] == texts[3] == alone


def test_cp03_cp04_token_ids_are_a_prompt(real: Server) -> None:
    one = real.complete([10, 11], max_tokens=2, temperature=0)
    two = real.complete([[10, 11], [12]], max_tokens=2, temperature=0)
    assert one["usage"]["prompt_tokens"] == 2
    assert two["usage"]["prompt_tokens"] == 3
    assert two["choices"][0]["text"] == one["choices"][0]["text"]


def test_cp05_a_prompt_is_scored(real: Server) -> None:
    body = real.complete("Once upon a time", echo=True, max_tokens=0, logprobs=1)
    scores = body["choices"][0]["logprobs"]
    assert scores["token_logprobs"][0] is None
    assert "".join(scores["tokens"]) == body["choices"][0]["text"] == "Once upon a time"
    assert len(scores["text_offset"]) == len(scores["tokens"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CP06": ({"prompt": "a", "suffix": "b"}, "suffix"),
    "CP07-few": ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
    "CP07-stream": ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
    "CP09-beyond": ({"prompt": [10**6]}, "prompt"),
    "CP09-negative": ({"prompt": [-1]}, "prompt"),
    "CP12": ({"prompt": ["a"] * 5000}, "prompt"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_named(real: Server, fields: Any, param: str) -> None:
    error = real.refused(COMPLETIONS, {"model": real.model, "max_tokens": 1, **fields})
    assert error["param"] == param


def test_cp08_a_stream_with_usage(real: Server) -> None:
    body = {"model": real.model, "prompt": "Once", "max_tokens": 4, "temperature": 0}
    options = {"stream_options": {"include_usage": True}}
    *chunks, last, done = real.gateway.stream(COMPLETIONS, {**body, **options})
    assert done == "[DONE]"
    assert {each["object"] for each in chunks} == {"text_completion"}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    text = "".join(choice["text"] for each in chunks for choice in each["choices"])
    assert text == real.ok(COMPLETIONS, body)["choices"][0]["text"]


def test_cp10_an_empty_prompt_is_refused_or_the_models_beginning(real: Server) -> None:
    error = real.refused(COMPLETIONS, {"model": real.model, "prompt": ""})
    assert error["param"] == "prompt"


def test_cp11_sixteen_tokens_unless_told_otherwise(real: Server) -> None:
    body = real.complete("Once upon", temperature=0, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 16
