from __future__ import annotations

import random

import h11
import pytest

from cortex.service.lane_body import MAX_CHUNK_LINE, MAX_TRAILER, BadChunk, ChunkedBody, TooLarge

LIMIT = 1000
NEXT = b"POST /next HTTP/1.1\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


WHOLE = {
    "empty": (b"0\r\n\r\n", b""),
    "one": (chunk(b"hello") + b"0\r\n\r\n", b"hello"),
    "several": (chunk(b"a") + chunk(b"b" * 300) + chunk(b"\r\n0\r\n\r\n") + b"0\r\n\r\n", None),
    "upper-case": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "leading-zeros": (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "extensions": (chunk(b"hi", b";a=b;c") + b"0;x\r\n\r\n", b"hi"),
    "trailers": (chunk(b"hi") + b"0\r\nx-sum: 1\r\nx-b:\r\n\r\n", b"hi"),
}


@pytest.fixture(params=WHOLE.values(), ids=WHOLE.keys())
def whole(request) -> tuple[bytes, bytes]:
    data, content = request.param
    return data, read_by_h11(data) if content is None else content


def read_by_h11(data: bytes) -> bytes:
    """The oracle."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    content = b""
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        content += bytes(event.data) if isinstance(event, h11.Data) else b""
    return content


def read(pieces: list[bytes], limit: int = LIMIT) -> ChunkedBody:
    body = ChunkedBody(limit)
    for number, piece in enumerate(pieces):
        assert not body.complete
        body.feed(piece)
        if body.complete:
            body.rest += b"".join(pieces[number + 1 :])
            break
    return body


def test_the_content_is_what_others_read_and_the_rest_is_left(whole):
    data, content = whole
    body = read([data + NEXT])
    assert (bytes(body.content), body.rest, body.complete) == (content, NEXT, True)
    assert read_by_h11(data) == content


def test_where_the_bytes_are_cut_makes_no_difference(whole):
    data, content = whole
    stream = data + NEXT
    for at in range(1, len(stream)):
        body = read([stream[:at], stream[at:]])
        assert (bytes(body.content), body.rest) == (content, NEXT)
    body = read([stream[n : n + 1] for n in range(len(stream))])
    assert (bytes(body.content), body.rest) == (content, NEXT)


def test_random_bodies_in_random_pieces():
    chance = random.Random(7)
    for _ in range(100):
        parts = [chance.randbytes(chance.randrange(1, 60)) for _ in range(chance.randrange(8))]
        stream = b"".join(map(chunk, parts)) + b"0\r\n\r\n" + NEXT
        pieces, at = [], 0
        while at < len(stream):
            size = chance.randrange(1, 20)
            pieces.append(stream[at : at + size])
            at += size
        body = read(pieces)
        assert (bytes(body.content), body.rest) == (b"".join(parts), NEXT)


def test_what_has_not_ended_is_not_complete(whole):
    data, _ = whole
    for end in range(len(data)):
        assert not read([data[:end]]).complete


BAD = {
    "no-size": b"\r\n",
    "no-hex": b"zz\r\n",
    "negative": b"-1\r\n",
    "plus": b"+5\r\n",
    "prefix": b"0x5\r\n",
    "space": b" 5\r\n",
    "space-behind": b"5 \r\n",
    "bare-lf": b"5\nhello\r\n",
    "bare-lf-behind-data": b"5\r\nhello\n0\r\n\r\n",
    "too-long-a-chunk": b"5\r\nhello!\r\n",
    "control-in-extension": b"5;a=\0\r\n",
    "cr-in-extension": b"5;a=\r5\r\n",
    "trailer-without-colon": b"0\r\nnonsense\r\n\r\n",
    "trailer-folded": b"0\r\nx: y\r\n z\r\n\r\n",
    "trailer-bare-lf": b"0\r\nx: y\n\r\n",
    "trailer-end-lf": b"0\r\n\n",
    "long-size": b"0" * 17 + b"\r\n",
    "long-line": b"5;" + b"x" * MAX_CHUNK_LINE,
    "long-trailers": b"0\r\n" + b"x: %b\r\n" % (b"y" * 4000) * (MAX_TRAILER // 4000 + 1),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_chunked_body_is_refused_however_it_is_cut(data):
    for pieces in ([data], [data[n : n + 1] for n in range(len(data))]):
        with pytest.raises(BadChunk):
            read(pieces)


def test_the_cap_is_met_before_the_chunk_has_come():
    assert read([chunk(b"x" * LIMIT) + b"0\r\n\r\n"]).complete
    with pytest.raises(TooLarge):
        read([b"%x\r\n" % (LIMIT + 1)])
    with pytest.raises(TooLarge):
        read([chunk(b"x" * LIMIT), b"1\r\n"])
    with pytest.raises(TooLarge):
        read([b"ffffffffffffffff\r\n"])
