from __future__ import annotations

import random
import re
from email.utils import parsedate_to_datetime

import attrs
import pytest
import trio

from cortex.service.http import Pace, StreamAnswer
from cortex.service.lane_answer import LinkSink, answer_head
from cortex.service.stream import StreamWriter


async def nothing(writer):
    pass


@attrs.define(eq=False)
class NarrowLink:
    """Takes a few bytes at a time, or none."""

    chance: random.Random
    got: bytearray = attrs.field(factory=bytearray)
    room: int = 1 << 20

    def send_now(self, data: bytes) -> int:
        count = min(len(data), self.room, self.chance.randrange(40))
        self.got += data[:count]
        return count

    async def send(self, data: bytes) -> None:
        while data:
            await trio.sleep(0.01)
            data = data[self.send_now(data) :]

    def send_later(self, send) -> None:
        pass


def test_a_head_is_written():
    head = answer_head(429, {"a": "b", "x": "y z"})
    first, a, x, date, *rest = head.split(b"\r\n")
    assert (first, a, x) == (b"HTTP/1.1 429 Too Many Requests", b"a: b", b"x: y z")
    assert parsedate_to_datetime(date.decode().removeprefix("date: ")).year >= 2026
    assert rest == [b"", b""]


def test_a_status_without_a_name_is_written():
    assert answer_head(529, {}).startswith(b"HTTP/1.1 529 \r\n")


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb"])
def test_no_header_splits_an_answer(value):
    with pytest.raises(ValueError, match="line end"):
        answer_head(200, {"x": value})


def unchunked(data: bytes) -> bytes:
    """The oracle: chunks taken apart one after the other."""
    content = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        content += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
        if length == 0:
            assert data == b""
            return content


@pytest.mark.parametrize("seed", range(20))
async def test_keep_alives_never_cut_into_frames_however_little_is_taken(autojump_clock, seed):
    chance = random.Random(seed)
    link = NarrowLink(chance)
    answer = StreamAnswer(nothing, Pace(1, 0.05, 60), filler=lambda: b": keep-alive\n\n")
    sink = LinkSink(link, lambda answer: b"HEAD\r\n\r\n", True)
    writer = StreamWriter(answer, sink)
    frames = [b"data: %d %b\n\n" % (n, b"x" * chance.randrange(90)) for n in range(30)]

    async def tick() -> None:
        while not writer.ended:
            writer.tick(trio.current_time())
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        for frame in frames:
            if chance.random() < 0.3:
                link.room = chance.choice((0, 1 << 20))
                await trio.sleep(chance.random() / 2)
                link.room = 1 << 20
            await writer.write(frame)
        await writer.finish()
    head, _, body = bytes(link.got).partition(b"\r\n\r\n")
    content = unchunked(body)
    assert head == b"HEAD"
    assert content.count(b": keep-alive\n\n") > 0
    assert re.sub(rb": keep-alive\n\n", b"", content) == b"".join(frames)
    assert sink.whole


async def test_the_end_goes_with_the_last_frame(autojump_clock):
    link = NarrowLink(random.Random(0))
    link.chance.randrange = lambda limit: 1 << 20
    sink = LinkSink(link, lambda answer: b"HEAD ", True)
    writer = StreamWriter(StreamAnswer(nothing), sink)
    await writer.write(b"ab", last=True)
    assert bytes(link.got) == b"HEAD 2\r\nab\r\n0\r\n\r\n"
    assert sink.whole


async def test_an_end_that_was_not_taken_is_none(autojump_clock):
    link = NarrowLink(random.Random(0), room=3)
    sink = LinkSink(link, lambda answer: b"HEAD ", True)
    sink.begin(StreamAnswer(nothing), b"")
    assert not sink.take(b"ab", last=True)
    assert not sink.whole
    link.room = 1 << 20
    await sink.drain()
    assert sink.whole
