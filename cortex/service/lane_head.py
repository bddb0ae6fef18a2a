"""The head of a request on the fast lane: which requests are taken, and what a head says.

Sans-IO. llhttp, under httptools, refuses what is ambiguous: two framings, repeated or signed
lengths, codings other than chunked, folded lines, bare line ends, control characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl

import attrs
import httptools

from cortex.errors import BadRequest, HeadTooLarge
from cortex.service.http import ONCE

MAX_HEAD_BYTES = 64 * 1024  # agents send long lists of betas; nginx's default is 32 KiB
MAX_FIELDS = 256
MAX_LINE_BYTES = 8 * 1024  # of the request line; a longer one is not ours to answer
END = b"\r\n\r\n"


class HotPaths:
    """Tells, from the first bytes of a connection, the requests that the fast lane serves."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = {path.encode(): path for path in paths}
        self._lines = {b"POST %b HTTP/1.1" % path: name for path, name in self._paths.items()}

    def match(self, data: bytes) -> str | None:
        """The path of the request that begins with *data*; empty where more bytes are needed to
        tell, None for every other request."""
        end = data.find(b"\r\n", 0, MAX_LINE_BYTES)
        if end < 0:
            begun = data[:5] == b"POST "[: len(data)] and b"\n" not in data
            return "" if begun and len(data) < MAX_LINE_BYTES else None
        line = data[:end]
        path = self._lines.get(line)
        if path is not None:
            return path
        method, _, rest = line.partition(b" ")
        target, _, version = rest.partition(b" ")
        if method != b"POST" or version not in (b"HTTP/1.1", b"HTTP/1.0"):
            return None
        return self._paths.get(target.partition(b"?")[0])


@attrs.define(eq=False, slots=True)
class Head:
    """What a request's head says. Names are in lower case, the last of repeated ones wins.

    ``length`` is the body's, None when it is chunked. ``close``: the client wants no more after it.
    """

    headers: dict[str, str] = attrs.field(factory=dict)
    query: dict[str, str] = attrs.field(factory=dict)
    length: int | None = 0
    close: bool = False
    chunked_answers: bool = True  # HTTP/1.0 knows no chunks: a stream ends with its connection
    fields: int = 0

    @property
    def expects_continue(self) -> bool:
        return self.headers.get("expect", "").lower() == "100-continue" and self.chunked_answers

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        _, mark, query = url.partition(b"?")
        if mark:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
            self.query = dict(reversed(pairs))  # the first of repeated ones wins, as in Quart

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").rstrip(" \t")
        self.fields += 1
        if key == "connection":
            self.close = self.close or "close" in _tokens(text)
        elif key in ONCE and key in self.headers:
            raise BadRequest(f"there is more than one {key} header", code="bad_request_head")
        self.headers[key] = text


def read_head(data: bytes) -> Head:
    """The head *data*, which ends with the blank line. BadRequest for what is not clear HTTP,
    HeadTooLarge for too many fields."""
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # to HTTP/2, say: an offer that one need not take up (RFC 9110 7.8)
    except httptools.HttpParserCallbackError as exc:
        raise exc.__context__ or exc from None
    except httptools.HttpParserError as exc:
        raise BadRequest(f"the request's head is not HTTP: {exc}", code="bad_request_head") from exc
    if head.fields > MAX_FIELDS:
        raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields")
    old = parser.get_http_version() == "1.0"
    if not old and "host" not in head.headers:
        raise BadRequest("the Host header is missing", code="bad_request_head")
    head.chunked_answers = not old
    head.close = head.close or old
    _frame(head, old)
    return head


def _frame(head: Head, old: bool) -> None:
    """How the body is delimited."""
    coding = head.headers.get("transfer-encoding")
    if coding is None:
        head.length = int(head.headers.get("content-length", "0"))
    elif coding.lower() != "chunked" or old:
        raise BadRequest("the only transfer-encoding is chunked", code="bad_request_head")
    else:
        head.length = None


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]
