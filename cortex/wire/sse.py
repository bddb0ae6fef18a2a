"""Server-sent events: frames out, frames in.

A dialect's stream has ``data:`` lines (and ``event:`` where the dialect wants it) and nothing else:
an ``id:`` or ``retry:`` line, or an event without data, crashes clients (`reference/api.md` 0.8).
"""

from __future__ import annotations

import attrs

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
# One event; a long tool call's frame stays far below it, so beyond it the peer is broken.
MAX_FRAME = 16 * 1024 * 1024


class FrameTooLong(ValueError):
    """The peer sent an event longer than `MAX_FRAME`."""


def data_frame(payload: bytes) -> bytes:
    """*payload* (one line of JSON) as an event without a name."""
    return b"data: %b\n\n" % payload


def event_frame(name: str, payload: bytes) -> bytes:
    """*payload* (one line of JSON) as an event called *name*."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)


def comment(text: str) -> bytes:
    """*text* as a comment: readers pass over it, people who look on see it."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return b": %b\n\n" % shown.encode()


def numbered_frame(number: str, name: str, payload: bytes) -> bytes:
    """As `event_frame`, with an id. For the fleet's own events, never in a dialect's stream."""
    return b"id: %b\n%b" % (number.encode(), event_frame(name, payload))


@attrs.frozen
class Frame:
    """One event as received. ``raw`` is what came, blank line included, for passing it on."""

    raw: bytes
    data: bytes | None  # None for comments and events without data
    event: str | None = None


@attrs.define(eq=False)
class FrameReader:
    """Cuts a byte stream into frames, wherever the stream was cut before.

    Lines end with LF or CRLF. `unfinished` tells whether bytes of an incomplete frame remain when
    the stream has ended: they are never delivered, so that a truncated event cannot look whole.
    """

    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _scanned: int = attrs.field(default=0, init=False)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that *data* completes, in order."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while True:
            end = self._frame_end(start)
            if end is None:
                break
            frames.append(_parse(bytes(buffer[start:end])))
            start = self._scanned = end
        if start:
            del buffer[:start]
        # A frame may end with the next byte: look again from three bytes back.
        self._scanned = max(0, len(buffer) - 3)
        if len(buffer) > MAX_FRAME:
            buffer.clear()  # nobody wants it, and the error may live as long as its traceback
            raise FrameTooLong(f"an event of more than {MAX_FRAME} bytes")
        return frames

    @property
    def empty(self) -> bool:
        """Whether what comes next begins a frame."""
        return not self._buffer

    @property
    def unfinished(self) -> bool:
        return bool(self._buffer.strip())

    def _frame_end(self, start: int) -> int | None:
        buffer, scan = self._buffer, max(start, self._scanned)
        lf = buffer.find(b"\n\n", scan)
        crlf = buffer.find(b"\n\r\n", scan, None if lf < 0 else lf + 1)
        if crlf >= 0 and (lf < 0 or crlf < lf):
            return crlf + 3
        return lf + 2 if lf >= 0 else None


def _parse(raw: bytes) -> Frame:
    if raw.startswith(b"data: ") and raw.count(b"\n") == 2 and b"\r" not in raw:
        return Frame(raw, raw[6:-2])  # by far the most frequent shape
    data: list[bytes] = []
    event: str | None = None
    for line in raw.replace(b"\r\n", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
    return Frame(raw, b"\n".join(data) if data else None, event)
