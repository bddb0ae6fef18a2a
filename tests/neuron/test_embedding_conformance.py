"""``/v1/embeddings`` of a whole neuron against OpenAI's contract, with a real small model."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest
from fakes.demo_neuron import DEMO, DemoNeuron

ROUTE = "/v1/embeddings"
TEXTS = ["What is cortex?", "A neuron runs on each GPU host.", "日本 😀", "x"]


def embed(demo: DemoNeuron, given: Any, **fields: Any) -> Any:
    response = demo.ask(ROUTE, {"input": given, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def vectors(demo: DemoNeuron, given: Any, **fields: Any) -> list[list[float]]:
    return [entry["embedding"] for entry in embed(demo, given, **fields)["data"]]


def tokens_of(demo: DemoNeuron, text: str) -> list[int]:
    body = {"prompt": text, "return_tokens": True}
    tokens: list[int] = demo.ask("/tokenize", body).json()["tokens"]
    return tokens


def test_an_answer_has_openais_shape_and_vectors_of_length_1(demo: DemoNeuron) -> None:
    body = embed(demo, TEXTS[0])
    assert (body["object"], body["model"]) == ("list", DEMO)
    (entry,) = body["data"]
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    assert all(type(number) is float for number in entry["embedding"])
    assert math.hypot(*entry["embedding"]) == pytest.approx(1, abs=1e-5)
    count = len(tokens_of(demo, TEXTS[0]))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == count


def test_base64_is_the_same_numbers_as_little_endian_floats(demo: DemoNeuron) -> None:
    floats = vectors(demo, TEXTS, encoding_format="float")
    packed: Any = vectors(demo, TEXTS, encoding_format="base64")
    for text, vector in zip(packed, floats, strict=True):
        data = base64.b64decode(text, validate=True)
        assert struct.unpack(f"<{len(vector)}f", data) == pytest.approx(vector, abs=1e-6)


def test_a_list_is_answered_in_its_order(demo: DemoNeuron) -> None:
    body = embed(demo, TEXTS)
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2, 3]
    for text, entry in zip(TEXTS, body["data"], strict=True):
        assert entry["embedding"] == pytest.approx(vectors(demo, text)[0], abs=1e-4)
    distinct = {tuple(round(x, 3) for x in entry["embedding"]) for entry in body["data"]}
    assert len(distinct) == len(TEXTS)


def test_token_ids_are_the_text_that_they_spell(demo: DemoNeuron) -> None:
    ids = [tokens_of(demo, text) for text in TEXTS]
    of_text = vectors(demo, TEXTS)
    for given in (ids, [ids[0]]):
        for ours, theirs in zip(vectors(demo, given), of_text, strict=False):
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert vectors(demo, ids[0])[0] == pytest.approx(of_text[0], abs=1e-4)


def test_control_tokens_in_a_text_are_text(demo: DemoNeuron) -> None:
    count = embed(demo, "<|im_start|>")["usage"]["prompt_tokens"]
    assert count > 1


def test_fewer_dimensions_are_the_first_ones_at_length_1(demo: DemoNeuron) -> None:
    (whole,) = vectors(demo, TEXTS[1])
    (cut,) = vectors(demo, TEXTS[1], dimensions=8)
    length = math.hypot(*whole[:8])
    assert cut == pytest.approx([number / length for number in whole[:8]], abs=1e-4)
    assert vectors(demo, TEXTS[1], dimensions=len(whole))[0] == pytest.approx(whole, abs=1e-4)
    refused = demo.ask(ROUTE, {"input": "a", "dimensions": len(whole) + 1})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [""]}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [True]}, "input"),
        ({"input": [99999]}, "input"),
        ({"input": [[1], [-1]]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": -1}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 8.5}, "dimensions"),
        ({"encoding_format": "binary"}, "encoding_format"),
        ({"user": 5}, "user"),
        ({"model": ""}, "model"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_request_is_refused_by_its_path(
    demo: DemoNeuron, fields: dict[str, Any], param: str
) -> None:
    response = demo.ask(ROUTE, {"input": "a", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert embed(demo, "a")["data"]  # and it still serves


def test_a_missing_input_and_an_unknown_model_have_their_codes(demo: DemoNeuron) -> None:
    missing = demo.client.post(ROUTE, json={"model": DEMO}).json()["error"]
    assert (missing["param"], missing["code"]) == ("input", "missing_required_parameter")
    unknown = demo.ask(ROUTE, {"input": "a", "model": "no/such"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"


def test_an_input_beyond_the_context_is_refused_and_not_cut(demo: DemoNeuron) -> None:
    error = demo.ask(ROUTE, {"input": ["short", "word and " * 40_000]}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert error["prompt_tokens"] > error["context"] == 65_536


def test_more_inputs_than_seats_are_taken_in_turns(demo: DemoNeuron) -> None:
    body = embed(demo, [f"number {n}" for n in range(200)])
    assert len(body["data"]) == 200
    alone = vectors(demo, "number 77")[0]
    assert body["data"][77]["embedding"] == pytest.approx(alone, abs=1e-4)


def test_the_defaults_of_common_clients_are_taken(demo: DemoNeuron) -> None:
    """LangChain sends token ids and base64, and every SDK fields of its own."""
    asked = {"input": [[5, 6, 7]], "encoding_format": "base64", "user": "u", "extra": {"a": 1}}
    answer = demo.ask(ROUTE, asked)
    assert answer.status_code == 200
    assert isinstance(answer.json()["data"][0]["embedding"], str)
    for field in ("encoding_format", "dimensions", "user"):
        assert embed(demo, "a", **{field: None})["data"]


def test_embeddings_generate_no_tokens(demo: DemoNeuron) -> None:
    generated = 'neuron_generation_tokens_total{model="cortex/demo"}'
    before = demo.metric(generated)
    embed(demo, TEXTS)
    assert demo.metric(generated) == before
    assert demo.metric('neuron_requests_total{end="embedded",model="cortex/demo"}') >= len(TEXTS)
