from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import UpstreamError
from cortex.gateway.foreign_answer import ForeignStream, answer_of
from cortex.wire import sse


def frame(**fields) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def choice(index: int = 0, reason: str | None = None, **delta) -> dict:
    return {"index": index, "delta": delta, "finish_reason": reason}


STREAM = (
    b": comment\n\n"
    + frame(model="theirs", choices=[choice(content="a")])
    + frame(model="m", choices=[choice(content="b")])
    + frame(model="theirs", choices=[choice(reason="stop")])
    + frame(model="theirs", choices=[], usage={"prompt_tokens": 1})
)


def passed(stream: ForeignStream, data: bytes, *cuts: int) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = b"".join(stream.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    return out + stream.end()


def test_the_models_name_is_replaced_and_nothing_else_is_touched():
    out = passed(ForeignStream("m"), STREAM + sse.DONE)
    frames = sse.FrameReader().feed(out)
    assert [json.loads(f.data)["model"] for f in frames[1:-1]] == ["m"] * 4
    assert frames[2].raw == frame(model="m", choices=[choice(content="b")])
    assert out.endswith(sse.DONE)
    assert out.count(b"[DONE]") == 1


def test_an_end_that_is_not_marked_is_when_the_answer_is_whole():
    stream = ForeignStream("m")
    out = passed(stream, STREAM)
    assert out.endswith(sse.DONE)
    assert stream.whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        frame(model="x", choices=[]),
        frame(model="x", choices=[choice(content="a")]),
        frame(choices=[choice(0, "stop"), choice(1, content="a")]),
        STREAM[:200],
    ],
)
def test_an_answer_that_is_not_whole_never_looks_finished(data):
    stream = ForeignStream("m")
    assert b"[DONE]" not in passed(stream, data)
    assert not stream.whole


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_it_is_the_same_however_it_is_cut(cuts):
    assert passed(ForeignStream("m"), STREAM, *cuts) == passed(ForeignStream("m"), STREAM)


@pytest.mark.parametrize("data", [b"data: no json\n\n", b"data: [1]\n\n", b"data: 5\n\n"])
def test_garbage_is_left_to_whoever_reads_it(data):
    assert passed(ForeignStream("m"), data) == data


def test_an_event_without_end_is_refused():
    stream = ForeignStream("m")
    with pytest.raises(UpstreamError):
        stream.feed(b"data: " + b"x" * (sse.MAX_FRAME + 1))


def test_a_whole_answer_has_the_public_name_and_packed_vectors_where_they_are_wanted():
    body = {"model": "theirs", "data": [{"embedding": [1.0, 0.5]}, {"embedding": "AACAPw=="}, 3]}
    data = json.dumps(body).encode()
    packed = json.loads(answer_of(data, "m", pack=True))
    assert packed["model"] == "m"
    assert [e["embedding"] for e in packed["data"][:2]] == ["AACAPwAAAD8=", "AACAPw=="]
    assert json.loads(answer_of(data, "m", pack=False))["data"] == body["data"]
    assert answer_of(b"no json", "m", pack=True) == b"no json"


@pytest.mark.parametrize("vector", [["a"], [None]])
def test_a_vector_that_is_none_is_the_upstreams_error(vector):
    data = json.dumps({"data": [{"embedding": vector}]}).encode()
    with pytest.raises(UpstreamError):
        answer_of(data, "m", pack=True)


def test_an_empty_finish_reason_is_none():
    """Some servers send it with every chunk: one that breaks off there has not finished."""
    cut = ForeignStream("m")
    assert sse.DONE not in passed(cut, frame(model="m", choices=[choice(reason="", content="a")]))
    assert not cut.whole
