from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.wire import sse
from cortex.wire.sse import Frame, FrameReader, FrameTooLong

many = settings(max_examples=100, deadline=None)
SAMPLE = (
    b'data: {"a":1}\n\n'
    b": keep-alive\n\n"
    b"event: ping\r\ndata: {}\r\n\r\n"
    b"data: one\ndata:two\n\n"
    b"id: 7\nretry: 5\ndata: x\n\n"
    b"event: only\n\n"
    b"\n\n"
    b"data: caf\xc3\xa9 \xf0\x9f\x99\x82\n\n"
    b"data: [DONE]\n\n"
)


def frames(*pieces):
    reader = FrameReader()
    return [frame for piece in pieces for frame in reader.feed(piece)]


def test_frames_of_every_form():
    found = [(frame.event, frame.data) for frame in frames(SAMPLE)]
    assert found == [
        (None, b'{"a":1}'),
        (None, None),
        ("ping", b"{}"),
        (None, b"one\ntwo"),
        (None, b"x"),
        ("only", None),
        (None, None),
        (None, "café 🙂".encode()),
        (None, b"[DONE]"),
    ]


@pytest.mark.parametrize("cut", range(len(SAMPLE) + 1))
def test_a_cut_anywhere_changes_nothing(cut):
    assert frames(SAMPLE[:cut], SAMPLE[cut:]) == frames(SAMPLE)


def test_byte_by_byte_changes_nothing():
    assert frames(*(bytes([byte]) for byte in SAMPLE)) == frames(SAMPLE)


lines = st.sampled_from([b"data: x", b"data:", b"event: e", b": c", b"", b"id: 1", b"data: \xff"])
streams = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n"]))).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


@many
@given(streams, st.lists(st.integers(0, 200), max_size=5))
def test_any_cuts_change_nothing(stream, cuts):
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert frames(*pieces) == frames(stream)


@many
@given(streams | st.binary(max_size=60))
def test_no_byte_is_lost_or_invented(stream):
    reader = FrameReader()
    raw = b"".join(frame.raw for frame in reader.feed(stream))
    assert stream.startswith(raw)
    assert reader.unfinished == bool(stream[len(raw) :].strip())


payloads = st.text().map(lambda text: text.replace("\n", "").replace("\r", "").encode())


@many
@given(payloads, st.none() | st.sampled_from(["ping", "message_start"]))
def test_what_is_written_is_read_back(payload, name):
    raw = sse.event_frame(name, payload) if name else sse.data_frame(payload)
    assert frames(raw) == [Frame(raw, payload, name)]


def test_a_truncated_frame_is_never_delivered():
    reader = FrameReader()
    assert reader.feed(b"data: whole\n\ndata: trunc\n") == [Frame(b"data: whole\n\n", b"whole")]
    assert reader.unfinished
    assert reader.feed(b"\n") == [Frame(b"data: trunc\n\n", b"trunc")]
    assert not reader.unfinished


def test_comments_are_told_apart():
    told = [(frame.data, frame.event) for frame in frames(sse.KEEP_ALIVE, sse.DONE)]
    assert told == [(None, None), (b"[DONE]", None)]


def test_a_frame_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(sse, "MAX_FRAME", 100)
    reader = FrameReader()
    with pytest.raises(FrameTooLong):
        reader.feed(b"data: " + b"x" * 100)
    assert reader.empty  # it holds nothing of it
    assert len(FrameReader().feed(b"data: x\n\n" * 100)) == 100


def test_a_numbered_frame_is_an_event_with_an_id():
    raw = sse.numbered_frame("ab-7", "pinned", b"{}")
    assert raw == b"id: ab-7\nevent: pinned\ndata: {}\n\n"
    (frame,) = FrameReader().feed(raw)
    assert (frame.event, frame.data) == ("pinned", b"{}")


def test_a_comment_is_one_line_whatever_it_says():
    assert sse.comment("loading a\n\ndata: x\x00é") == b": loading a??data: x??\n\n"
