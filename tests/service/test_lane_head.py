from __future__ import annotations

import pytest

from cortex.errors import BadRequest, CortexError, HeadTooLarge
from cortex.service.lane_head import MAX_FIELDS, MAX_LINE_BYTES, HotPaths, read_head

HOT = HotPaths(["/v1/chat", "/v1/messages"])


def head(
    *lines: bytes, first: bytes = b"POST /v1/chat HTTP/1.1", host: bytes = b"host: x"
) -> bytes:
    return b"\r\n".join([first, *filter(None, [host]), *lines]) + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"POST /v1/chat HTTP/1.1", "/v1/chat"),
        (b"POST /v1/chat HTTP/1.0", "/v1/chat"),
        (b"POST /v1/messages?beta=true HTTP/1.1", "/v1/messages"),
        (b"POST /v1/chat? HTTP/1.1", "/v1/chat"),
        (b"GET /v1/chat HTTP/1.1", None),
        (b"post /v1/chat HTTP/1.1", None),
        (b"POST /v1/chat/ HTTP/1.1", None),
        (b"POST /v1//chat HTTP/1.1", None),
        (b"POST /v1/%63hat HTTP/1.1", None),
        (b"POST /V1/chat HTTP/1.1", None),
        (b"POST  /v1/chat HTTP/1.1", None),
        (b"POST /v1/chat  HTTP/1.1", None),
        (b"POST /v1/chat HTTP/1.1 ", None),
        (b"POST /v1/chat HTTP/2.0", None),
        (b"POST /v1/chat", None),
        (b"PRI * HTTP/2.0", None),
        (b"POST http://x/v1/chat HTTP/1.1", None),
        (b"", None),
    ],
)
def test_only_a_clear_request_to_a_hot_path_is_ours(line, path):
    data = line + b"\r\nhost: x\r\n\r\n"
    assert HOT.match(data) == path
    # However little of it is there, it is never taken for another's too early.
    for end in range(1, len(line) + 2):
        assert HOT.match(data[:end]) in ("", path)


@pytest.mark.parametrize("data", [b"G", b"POSH", b"\x16\x03\x01", b"\r\n", b"POST /x\nhost: x"])
def test_what_cannot_become_ours_is_seen_at_once(data):
    assert HOT.match(data) is None


def test_a_line_without_end_is_not_ours_for_ever():
    assert HOT.match(b"POST /" + b"x" * MAX_LINE_BYTES) is None


def test_a_head_is_read():
    data = head(
        b"Content-Length: 5 ",
        b"X-A: one",
        b"x-a:  two",
        b"X-Text: \xc3\xa9",
        first=b"POST /v1/chat?a=1&b=&a=2 HTTP/1.1",
    )
    found = read_head(data)
    assert found.headers == {"host": "x", "content-length": "5", "x-a": "two", "x-text": "Ã©"}
    assert found.query == {"a": "1", "b": ""}
    assert (found.length, found.close, found.chunked_answers) == (5, False, True)


@pytest.mark.parametrize(
    ("lines", "length"),
    [((), 0), ((b"content-length: 0",), 0), ((b"transfer-encoding: Chunked",), None)],
)
def test_how_a_body_is_framed(lines, length):
    assert read_head(head(*lines)).length == length


@pytest.mark.parametrize("line", [b"connection: close", b"Connection: TE, Close"])
def test_a_client_that_wants_to_close(line):
    assert read_head(head(line)).close
    assert read_head(head(line, b"connection: keep-alive")).close
    assert not read_head(head(b"connection: keep-alive")).close


def test_an_old_client_gets_no_chunks_and_is_closed():
    found = read_head(head(b"expect: 100-continue", first=b"POST /v1/chat HTTP/1.0", host=b""))
    assert (found.close, found.chunked_answers, found.expects_continue) == (True, False, False)


def test_an_offer_of_another_protocol_is_ignored():
    lines = (b"connection: upgrade", b"upgrade: h2c", b"content-length: 7")
    assert read_head(head(*lines)).length == 7


BAD = {
    "both": (b"content-length: 5", b"transfer-encoding: chunked"),
    "both-reversed": (b"transfer-encoding: chunked", b"content-length: 5"),
    "plus": (b"content-length: +5",),
    "negative": (b"content-length: -1",),
    "hex": (b"content-length: 0x5",),
    "underscore": (b"content-length: 1_0",),
    "empty": (b"content-length:",),
    "listed": (b"content-length: 5, 5",),
    "repeated": (b"content-length: 5", b"content-length: 5"),
    "differing": (b"content-length: 5", b"content-length: 6"),
    "huge": (b"content-length: " + b"9" * 30,),
    "xchunked": (b"transfer-encoding: xchunked",),
    "identity": (b"transfer-encoding: chunked, identity",),
    "gzip-chunked": (b"transfer-encoding: gzip, chunked",),
    "chunked-twice": (b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
    "folded": (b"x-a: b\r\n c",),
    "folded-tab": (b"x-a: b\r\n\tc",),
    "bare-lf": (b"x-a: b\nx-c: d",),
    "bare-cr": (b"x-a: b\rx-c: d",),
    "nul": (b"x-a: a\0b",),
    "control": (b"x-a: a\1b",),
    "space-before-colon": (b"x-a : b",),
    "no-colon": (b"nonsense",),
    "no-name": (b": b",),
    "two-hosts": (b"host: y",),
    "two-keys": (b"authorization: Bearer a", b"Authorization: Bearer b"),
    "two-encodings": (b"content-encoding: gzip", b"content-encoding: zstd"),
}


@pytest.mark.parametrize("lines", BAD.values(), ids=BAD.keys())
def test_what_is_ambiguous_is_refused(lines):
    with pytest.raises(BadRequest) as caught:
        read_head(head(*lines))
    assert caught.value.error_code == "bad_request_head"
    assert len(caught.value.message) < 200


def test_a_host_is_needed():
    with pytest.raises(BadRequest, match="Host"):
        read_head(head(host=b""))


def test_an_old_client_with_chunks_is_refused():
    with pytest.raises(CortexError):
        read_head(head(b"transfer-encoding: chunked", first=b"POST /v1/chat HTTP/1.0"))


def test_fields_are_counted():
    read_head(head(*[b"x-%d: y" % n for n in range(MAX_FIELDS - 1)]))
    with pytest.raises(HeadTooLarge):
        read_head(head(*[b"x-%d: y" % n for n in range(MAX_FIELDS)]))
