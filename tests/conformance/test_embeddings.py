"""EM: embeddings."""

from __future__ import annotations

import base64
import math
import struct
from array import array
from typing import Any

import pytest
from conformance.checks import EMBEDDINGS, Server
from fakes.neuron import error_reply, json_reply

from cortex.wire.embeddings import packed


def vectors(body: Any) -> list[list[float]]:
    return [entry["embedding"] for entry in body["data"]]


def test_em01_em02_floats_and_base64_are_the_same_numbers(real: Server) -> None:
    (plain,) = vectors(real.embed("cortex", encoding_format="float"))
    (coded,) = vectors(real.embed("cortex", encoding_format="base64"))
    raw = base64.b64decode(coded)
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain, abs=1e-6)


def test_em03_the_order_of_a_list(real: Server) -> None:
    body = real.embed(["one", "two", "one"])
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    first, second, third = vectors(body)
    assert first == pytest.approx(third, abs=1e-4)
    assert first != second
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


def test_em04_token_ids(real: Server) -> None:
    assert len(vectors(real.embed([[10, 11], [12]]))) == 2
    assert len(vectors(real.embed([10, 11]))) == 1


def test_em05_fewer_dimensions_have_length_1_again(real: Server) -> None:
    (vector,) = vectors(real.embed("cortex", dimensions=8))
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "EM06": ({"dimensions": -1}, "dimensions"),
    "EM07-list": ({"input": []}, "input"),
    "EM07-text": ({"input": ""}, "input"),
    "EM07-inner": ({"input": [""]}, "input[0]"),
    "EM08": ({"input": ["a"] * 2049}, "input"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_named(scripted: Server, fields: Any, param: str) -> None:
    error = scripted.refused(EMBEDDINGS, {"model": "m", "input": "a", **fields})
    assert error["param"] == param


def test_em09_a_model_without_embeddings_is_a_clients_error(scripted: Server) -> None:
    scripted.says(error_reply(400, "unsupported_value", "no embeddings"), EMBEDDINGS)
    assert scripted.refused(EMBEDDINGS, {"model": "m", "input": "a"})["code"] == "unsupported_value"


def test_em10_what_is_too_long_is_not_cut(real: Server) -> None:
    error = real.refused(EMBEDDINGS, {"model": real.model, "input": "word and " * 40_000})
    assert error["code"] == "context_length_exceeded"


def test_em12_what_is_no_number_is_never_told(scripted: Server) -> None:
    vector = packed(array("f", [1.0, math.nan]))
    entry = {"object": "embedding", "index": 0, "embedding": vector}
    scripted.says(json_reply({"object": "list", "data": [entry], "model": "m"}), EMBEDDINGS)
    scripted.refused(EMBEDDINGS, {"model": "m", "input": "a"}, 502)
