"""An upstream's bytes through an encoder: frame by frame, or past it where nothing can be in them.

Nearly all of a stream's frames are one frame with another piece of text in it. Once such a frame
has been parsed and encoded, what stands around its text, before and after encoding, is kept as a
`Mould`; a frame that fits it, with the body of a JSON string in the gap, needs no parsing: it is
valid, holds neither usage nor an end nor an error, and what it becomes is known. Everything else
goes the slow way, which is the oracle in the tests.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
import orjson

from cortex.gateway.encoder import Encoder
from cortex.wire import sse

# The body of a JSON string that every writer spells alike: no \u escape, no escaped slash.
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\["\\bfnrt][^"\\\x00-\x1f]*)*')
_PROBE = "probe"
_MAX_MOULDS = 4  # a stream whose frames never fit the last mould is not worth another one


@attrs.frozen
class Mould:
    """What stands around the text: of a frame's ``data:`` line, and of what it becomes."""

    before: bytes
    after: bytes
    out_before: bytes
    out_after: bytes

    def text_in(self, line: bytes) -> bytes | None:
        """The other text, as it is written, if *line* is that frame but for it; not an empty one:
        encoders may leave such frames out."""
        if not (line.startswith(self.before) and line.endswith(self.after)):
            return None
        text = line[len(self.before) : len(line) - len(self.after)]
        if not text or _TEXT.fullmatch(text) is None or not (text.isascii() or _is_utf8(text)):
            return None
        return text


@attrs.define(eq=False)
class Passage:
    """One stream. `take` what comes, then write what was `taken`, also when it raised."""

    encoder: Encoder
    tokens: int = attrs.field(default=0, init=False)  # frames with output that were taken
    _out: list[bytes] = attrs.field(factory=list, init=False)
    _reader: sse.FrameReader = attrs.field(factory=sse.FrameReader, init=False)
    _mould: Mould | None = attrs.field(default=None, init=False)
    _moulds: int = attrs.field(default=0, init=False)  # made without one having fitted

    def take(self, data: bytes) -> None:
        """Encode the frames that *data* completes, up to the stream's end. Raises `FrameTooLong`,
        and what the encoder does."""
        lines = data.split(b"\n\n")
        rest = lines.pop()
        mould = self._mould if self._reader.empty else None
        for line in lines:
            text = mould.text_in(line) if mould is not None else None
            if mould is None or text is None:
                self._feed(line + b"\n\n")
                mould = self._mould if self._reader.empty else None
                continue
            self.tokens += 1
            self._moulds = 0
            self._out += (mould.out_before, text, mould.out_after)
        if rest:
            self._feed(rest)

    def taken(self) -> bytes:
        """What the frames taken since the last call became."""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.tokens = 0
        return out

    def _feed(self, data: bytes) -> None:
        encoder = self.encoder
        for frame in self._reader.feed(data):
            if encoder.complete:
                break
            encoder.produced = False
            self._out.append(encoder.feed(frame))
            if encoder.produced:
                self.tokens += 1
                self._mould = None  # other output may have changed what text becomes
                if self._moulds < _MAX_MOULDS:
                    self._mould = mould_of(frame, encoder)
                    self._moulds += self._mould is not None
        if encoder.complete:
            self._mould = None  # nothing passes behind the end


def mould_of(frame: sse.Frame, encoder: Encoder) -> Mould | None:
    """The mould of *frame*, which *encoder* has just encoded; None when it has no plain text, or
    when the encoder does something else with it than to copy it."""
    gap = _gap(frame, encoder.skims) if frame.data is not None else None
    if gap is None or frame.data is None:
        return None
    before, after = frame.data[: gap[0]], frame.data[gap[1] :]
    probe = before + _PROBE.encode() + after
    parts = encoder.feed(sse.Frame(b"data: %b\n\n" % probe, probe)).split(_PROBE.encode())
    if len(parts) != 2:
        return None
    return Mould(b"data: " + before, after, parts[0], parts[1])


def _gap(frame: sse.Frame, members: tuple[str, ...]) -> tuple[int, int] | None:
    """Where the text lies in *frame*'s data, if one of *members* is all it has to tell."""
    data = frame.data or b""
    if frame.raw != b"data: %b\n\n" % data or _PROBE.encode() in data:
        return None
    chunk = orjson.loads(data)
    choices = chunk.get("choices")
    if chunk.keys() & {"usage", "timings"} and (chunk.get("usage") or chunk.get("timings")):
        return None
    if not isinstance(choices, list) or len(choices) != 1 or choices[0].get("finish_reason"):
        return None
    delta = choices[0].get("delta")
    inner: dict[str, Any] = delta if isinstance(delta, dict) else choices[0]
    told = [name for name in (*members, "tool_calls") if inner.get(name)]
    if len(told) != 1 or told[0] not in members:
        return None
    found = list(re.finditer(rb'"%b": ?"' % told[0].encode(), data))
    body = _TEXT.match(data, found[0].end()) if len(found) == 1 else None
    if body is None or data[body.end() : body.end() + 1] != b'"':
        return None
    # The proof that this is the place: with another text there, only that member is another.
    inner[told[0]] = _PROBE
    probe = data[: body.start()] + _PROBE.encode() + data[body.end() :]
    return body.span() if orjson.loads(probe) == chunk else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
