"""What skims over frames is compared with what parses each of them."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from cortex.errors import CortexError
from cortex.gateway.anthropic_encoder import MessageStream
from cortex.gateway.encoder import Encoder, PassThrough
from cortex.gateway.passage import Passage, mould_of
from cortex.translate.anthropic import read_messages
from cortex.wire.sse import Frame, FrameReader

TEXTS = [
    "a",
    " token",
    "",
    "é",
    "日本",
    '"quoted"',
    "back\\slash",
    "line\nbreak",
    "\x01",
    "a/b",
    "probe",
    '"content":"x"',
    "\x7f",
    "😀",
]
# Bodies of a string that are none, or not one that everybody spells alike.
ODD_BODIES = [
    b"\\u0041",
    b"\\ud800",
    b"\\x",
    b"\\",
    b"a\x00b",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b'x"y',
    b"\\/",
    b'","finish_reason":"stop',
    b'"},"usage":{"prompt_tokens":3},"x":{"y":"',
]


def slow(encoder: Encoder, data: bytes) -> tuple[bytes, int, str]:
    """What comes out frame by frame, how many frames had output, and how it ended."""
    out, tokens = b"", 0
    for frame in FrameReader().feed(data):
        encoder.produced = False
        try:
            out += encoder.feed(frame)
        except CortexError as exc:
            return out, tokens, f"{type(exc).__name__}: {exc}"
        tokens += encoder.produced
        if encoder.complete:
            return out, tokens, "complete"
    return out, tokens, "open"


def quick(encoder: Encoder, pieces: list[bytes]) -> tuple[bytes, int, str]:
    passage, end = Passage(encoder), "open"
    for piece in pieces:
        try:
            passage.take(piece)
        except CortexError as exc:
            end = f"{type(exc).__name__}: {exc}"
            break
        if encoder.complete:
            end = "complete"
            break
    tokens = passage.tokens
    return passage.taken(), tokens, end


def pass_through(requested: str = "m", include_usage: bool = False) -> PassThrough:
    return PassThrough(model="m", requested=requested, include_usage=include_usage)


def anthropic() -> MessageStream:
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    return MessageStream(read_messages(asked), "msg_1", "req_1")


ENCODERS = {
    "as it is": pass_through,
    "alias": lambda: pass_through("gpt-4"),
    "usage": lambda: pass_through(include_usage=True),
    "anthropic": anthropic,
}


def frame(chance: random.Random, spaced: bool) -> bytes:
    """One frame of any kind, mostly with a piece of text."""
    text = chance.choice(TEXTS)
    kind = chance.choices(
        ["content", "reasoning_content", "text", "call", "finish", "usage", "odd", "else"],
        [30, 6, 2, 2, 1, 1, 4, 3],
    )[0]
    choice: dict[str, object] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body: dict[str, object] = {"id": "x", "model": "m", "choices": [choice]}
    if kind == "reasoning_content":
        choice["delta"] = {"reasoning_content": text, "content": None}
    elif kind == "text":
        choice["text"] = text
        del choice["delta"]
    elif kind == "call":
        choice["delta"] = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}
    elif kind == "finish":
        choice["finish_reason"] = "stop"
    elif kind == "usage":
        body["usage"] = {"prompt_tokens": 3, "completion_tokens": chance.randint(1, 9)}
        if chance.random() < 0.5:
            body["choices"] = []
            body["timings"] = {"decode_ms": 5}
    elif kind == "else":
        more = {"logprobs": {"content": [text]}, "index": 1, "extra": text}
        name = chance.choice(list(more))
        choice[name] = more[name]
    separators = None if spaced else (",", ":")
    data = json.dumps(body, ensure_ascii=chance.random() < 0.2, separators=separators).encode()
    if kind == "odd":
        data = chance.choice(
            [
                data.replace(b'"content": "', b'"content": "' + chance.choice(ODD_BODIES), 1),
                data.replace(b'"content":"', b'"content":"' + chance.choice(ODD_BODIES), 1),
                data.replace(b"}", b"}\ndata: ", 1),
                b"{",
                data + b" ",
                json.dumps({"error": {"message": "no"}}).encode(),
            ]
        )
    end = chance.choice([b"\n\n"] * 12 + [b"\r\n\r\n", b"\n\r\n", b"\n\n\n", b"\n\n: ping\n\n"])
    return b"data: " + data + end


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """*data* in pieces, mostly between frames, as an upstream's writes bring it."""
    marks = {0, len(data)}
    for _ in range(chance.randint(0, 12)):
        at = chance.randint(0, len(data))
        whole = data.find(b"\n\n", at)
        marks.add(whole + 2 if whole >= 0 and chance.random() < 0.7 else at)
    ordered = sorted(marks)
    return [data[a:b] for a, b in itertools.pairwise(ordered)]


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
@pytest.mark.parametrize("seed", range(150))
def test_skimming_is_parsing(make, seed):
    chance = random.Random(seed)
    spaced = chance.random() < 0.5
    data = b"".join(frame(chance, spaced) for _ in range(chance.randint(1, 25)))
    if chance.random() < 0.5:
        data += b"data: [DONE]\n\ndata: {}\n\n"
    expected, got = make(), make()
    assert quick(got, cut(chance, data)) == slow(expected, data)
    assert got.observed == expected.observed


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
def test_nothing_passes_behind_the_end(make):
    text = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    end = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    whole = text * 3 + end + b"data: [DONE]\n\n"
    assert quick(make(), [whole + text]) == quick(make(), [whole])


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
def test_of_a_usual_stream_few_frames_are_parsed(make):
    encoder = make()
    fed: list[Frame] = []
    feed = encoder.feed
    encoder.feed = lambda frame: (fed.append(frame), feed(frame))[1]  # type: ignore[method-assign]
    body = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
    data = b"".join(body % word.encode() for word in ["one", "two", "thrée", "", '\\"'] * 20)
    out, tokens, _ = quick(encoder, [data[:200], data[200:]])
    assert tokens == 80
    assert out.count(b"thr\xc3\xa9e") == 20
    # The first and the one that was cut in two, each with its probe, and those without text.
    assert len(fed) <= 4 + 20


def moulded(data: bytes, encoder: Encoder) -> bool:
    frame = Frame(b"data: %b\n\n" % data, data)
    encoder.feed(frame)
    return mould_of(frame, encoder) is not None


@pytest.mark.parametrize(
    ("choice", "more"),
    [
        ({"delta": {"content": "a"}, "finish_reason": "stop"}, {}),
        ({"delta": {"content": "a"}}, {"usage": {"prompt_tokens": 1}}),
        ({"delta": {"content": "a"}}, {"timings": {"decode_ms": 1}}),
        ({"delta": {"content": "a", "tool_calls": [{"index": 0}]}}, {}),
        ({"delta": {"content": "a", "reasoning_content": "b"}}, {}),
        ({"delta": {"content": "a"}, "note": {"content": "a"}}, {}),
        ({"delta": {"content": ["a"]}}, {}),
        ({"delta": {"content": "probe"}}, {}),
        ({"delta": {"content": "\x01"}}, {}),
    ],
)
def test_a_frame_that_tells_more_than_a_text_makes_no_mould(choice, more):
    data = json.dumps({"choices": [choice], **more}).encode()
    assert not moulded(data, pass_through())


def test_a_plain_frame_makes_a_mould():
    assert moulded(b'{"choices":[{"delta":{"content":"a"}}]}', pass_through())


def test_a_stream_that_never_fits_is_given_up():
    encoder = pass_through()
    passage = Passage(encoder)
    for number in range(50):
        body = b'{"n":%d,"choices":[{"delta":{"content":"a"}}]}' % number
        passage.take(b"data: %b\n\n" % body)
    assert passage.tokens == 50
    assert passage._mould is None
