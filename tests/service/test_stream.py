from __future__ import annotations

import pytest
import trio

from cortex.service.http import StreamAnswer
from cortex.service.stream import BUFFER, ClientStalled, Pace, StreamWriter

PACE = Pace(commit_after=5, keep_alive=2, stall=10)


class Response:
    """A writer and what the server makes of it, with the times."""

    def __init__(self, opening=b"", fill=b":") -> None:
        self.answers: list[tuple[float, StreamAnswer]] = []
        self.start = trio.current_time()
        self.writer = StreamWriter(PACE, lambda: opening, lambda: fill, self)

    def started(self, answer: StreamAnswer) -> None:
        self.answers.append((self.now, answer))

    @property
    def now(self) -> float:
        return trio.current_time() - self.start

    @property
    def chunks(self) -> trio.MemoryReceiveChannel[bytes]:
        ((_, answer),) = self.answers
        return answer.chunks

    async def read(self) -> list[tuple[float, bytes]]:
        return [(self.now, chunk) async for chunk in self.chunks]


async def test_the_status_is_sent_once_with_the_opening_first(autojump_clock):
    response = Response(opening=b"open")
    with response.writer as writer:
        await writer.commit()
        await writer.commit()
        await writer.write(b"data")
    assert await response.read() == [(0, b"open"), (0, b"data")]


async def test_leaving_the_block_ends_the_response(autojump_clock):
    response = Response()
    with response.writer as writer:
        await writer.commit()
    assert await response.read() == []


async def test_nothing_is_sent_for_nothing(autojump_clock):
    response = Response()
    with response.writer as writer:
        await writer.commit()
        await writer.write(b"")
    assert await response.read() == []


async def test_silence_commits_after_a_while_and_is_filled_from_then_on(autojump_clock):
    response = Response()
    seen = []
    async with trio.open_nursery() as nursery:
        with response.writer as writer:
            nursery.start_soon(writer.fill_silence)
            await writer.committed.wait()
            with trio.move_on_after(4.5):
                while True:
                    seen.append((await response.chunks.receive(), response.now))
            nursery.cancel_scope.cancel()
    assert response.answers[0][0] == 5
    assert seen == [(b":", 5), (b":", 7), (b":", 9)]


async def test_keep_alives_come_only_when_nothing_else_does(autojump_clock):
    response = Response()

    async def produce(writer):
        for _ in range(5):
            await trio.sleep(1.5)
            await writer.write(b"data")
        await trio.sleep(2.5)
        writer._send.close()

    async with trio.open_nursery() as nursery:
        with response.writer as writer:
            await writer.commit()
            nursery.start_soon(writer.fill_silence)
            nursery.start_soon(produce, writer)
            seen = await response.read()
            nursery.cancel_scope.cancel()
    assert seen == [*((1.5 * n, b"data") for n in range(1, 6)), (9.5, b":")]


async def test_a_commit_in_time_is_not_repeated_by_the_silence(autojump_clock):
    response = Response()
    async with trio.open_nursery() as nursery:
        with response.writer as writer:
            nursery.start_soon(writer.fill_silence)
            await trio.sleep(1)
            await writer.commit()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    assert response.answers[0][0] == 1


async def test_no_keep_alive_where_none_may_stand(autojump_clock):
    response = Response(fill=b"")
    async with trio.open_nursery() as nursery:
        with response.writer as writer:
            nursery.start_soon(writer.fill_silence)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
    assert await response.read() == []


async def test_a_client_that_takes_nothing_is_given_up_after_the_stall_bound(autojump_clock):
    response = Response()
    with response.writer as writer:
        await writer.commit()
        for _ in range(BUFFER):
            await writer.write(b"x")
        with pytest.raises(ClientStalled):
            await writer.write(b"x")
    assert response.now == PACE.stall


async def test_a_slow_client_gets_everything_in_order(autojump_clock):
    response = Response()
    frames = [b"%d" % n for n in range(BUFFER * 2)]
    seen = []

    async def consume():
        async for chunk in response.chunks:
            seen.append(chunk)
            await trio.sleep(PACE.stall / 2)

    async with trio.open_nursery() as nursery:
        with response.writer as writer:
            await writer.commit()
            nursery.start_soon(consume)
            for frame in frames:
                await writer.write(frame)
    assert seen == frames


async def test_a_response_that_is_gone_is_told_to_the_writer(autojump_clock):
    response = Response()
    with response.writer as writer:
        await writer.commit()
        response.chunks.close()
        with pytest.raises(trio.BrokenResourceError):
            await writer.write(b"x")
