from __future__ import annotations

import pytest
import trio
from fakes.streams import RecordingSink, run_stream

from cortex.service.http import Pace, StreamAnswer
from cortex.service.stream import BUFFER, ChannelSink, ClientStalled, StreamWriter

PACE = Pace(commit_after=5, keep_alive=2, stall=10)


class Response:
    """An answer, and what its client gets of it."""

    def __init__(self, produce, opening=b"", fill=b":") -> None:
        self.answer = StreamAnswer(produce, PACE, opening=lambda: opening, filler=lambda: fill)
        self.sink = RecordingSink()

    async def run(self) -> list[tuple[float, bytes]]:
        await run_stream(self.answer, self.sink)
        return self.sink.chunks


async def nothing(writer):
    pass


async def test_the_status_is_sent_once_with_the_opening_first(autojump_clock):
    async def produce(writer):
        await writer.commit()
        await writer.commit()
        await writer.write(b"data")

    response = Response(produce, opening=b"open")
    assert await response.run() == [(0, b"open"), (0, b"data")]
    assert len(response.sink.begun) == 1


async def test_a_status_goes_out_with_data_that_is_at_hand(autojump_clock):
    async def produce(writer):
        await writer.write(b"data", last=True)

    response = Response(produce, opening=b"open ")
    assert await response.run() == [(0, b"open data")]
    assert response.sink.ended


async def test_an_answer_without_data_is_begun_and_ended(autojump_clock):
    response = Response(nothing)
    assert await response.run() == []
    assert response.sink.ended
    assert len(response.sink.begun) == 1


async def test_nothing_is_sent_for_nothing_and_nothing_behind_the_end(autojump_clock):
    async def produce(writer):
        await writer.commit()
        await writer.write(b"")
        await writer.write(b"x", last=True)
        await writer.write(b"y")
        await trio.sleep(100)

    assert await Response(produce).run() == [(0, b"x")]


async def test_silence_commits_after_a_while_and_is_filled_from_then_on(autojump_clock):
    async def produce(writer):
        await trio.sleep(9.5)

    response = Response(produce)
    assert await response.run() == [(5, b":"), (7, b":"), (9, b":")]
    assert response.sink.begun[0][0] == 5


async def test_an_opening_in_silence_is_a_sign_of_life_itself(autojump_clock):
    async def produce(writer):
        await trio.sleep(8)

    assert await Response(produce, opening=b"o").run() == [(5, b"o"), (7, b":")]


async def test_keep_alives_come_only_when_nothing_else_does(autojump_clock):
    async def produce(writer):
        await writer.commit()
        for _ in range(5):
            await trio.sleep(1.5)
            await writer.write(b"data")
        await trio.sleep(2.5)

    seen = await Response(produce).run()
    assert seen == [*((1.5 * n, b"data") for n in range(1, 6)), (9.5, b":")]


async def test_a_commit_in_time_is_not_repeated_by_the_silence(autojump_clock):
    async def produce(writer):
        await trio.sleep(1)
        await writer.commit()
        await trio.sleep(10)

    response = Response(produce)
    await response.run()
    assert [at for at, _ in response.sink.begun] == [1]


async def test_no_keep_alive_where_none_may_stand(autojump_clock):
    async def produce(writer):
        await trio.sleep(30)

    assert await Response(produce, fill=b"").run() == []


async def test_a_client_that_takes_nothing_is_given_up_after_the_stall_bound(autojump_clock):
    async def produce(writer):
        await writer.write(b"x")

    response = Response(produce)
    response.sink.stalled = True
    with pytest.RaisesGroup(ClientStalled):
        await response.run()
    assert response.sink.now == PACE.stall


async def test_a_slow_client_gets_everything_in_order_and_no_keep_alive_within(autojump_clock):
    frames = [b"%d" % n for n in range(20)]

    async def produce(writer):
        await writer.commit()
        for frame in frames:
            response.sink.stalled = True
            await writer.write(frame)

    async def take_now_and_then():
        while True:
            await trio.sleep(PACE.stall / 2)
            response.sink.stalled = False

    response = Response(produce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_now_and_then)
        await response.run()
        nursery.cancel_scope.cancel()
    assert response.sink.body == b"".join(frames)


async def test_a_keep_alive_that_is_not_taken_waits_and_is_not_repeated(autojump_clock):
    async def produce(writer):
        await writer.commit()
        response.sink.stalled = True
        await trio.sleep(7)
        response.sink.stalled = False
        await writer.write(b"data")

    response = Response(produce)
    assert await response.run() == [(7, b":data")]


async def test_a_client_that_has_gone_is_told_to_the_producer_and_to_no_tick(autojump_clock):
    told = []

    async def produce(writer):
        await writer.commit()
        response.sink.gone = True
        await trio.sleep(7)
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await writer.write(b"x")
            told.append(response.sink.now)

    response = Response(produce)
    assert await response.run() == []
    assert told == [7, 7]
    assert not response.sink.ended


async def test_what_fails_before_the_commit_sends_nothing(autojump_clock):
    async def produce(writer):
        raise ZeroDivisionError

    response = Response(produce)
    with pytest.RaisesGroup(ZeroDivisionError):
        await response.run()
    assert response.sink.begun == []


# Into a channel


async def test_a_channel_gets_frames_in_order_from_several_tasks_at_once(autojump_clock):
    send, receive = trio.open_memory_channel(BUFFER)
    started = []
    answer = StreamAnswer(nothing, PACE)
    writer = StreamWriter(answer, ChannelSink(send, started.append))

    async def write(name):
        for n in range(BUFFER):
            await writer.write(b"%b%d " % (name, n))

    await writer.commit()
    async with trio.open_nursery() as nursery:
        for name in (b"a", b"b", b"c"):
            nursery.start_soon(write, name)
        words = []
        while len(words) < 3 * BUFFER:
            words += (await receive.receive()).split()
    assert started == [answer]
    for name in (b"a", b"b", b"c"):
        assert [w for w in words if w.startswith(name)] == [
            b"%b%d" % (name, n) for n in range(BUFFER)
        ]


@pytest.mark.parametrize("side", ["receive", "send"])
async def test_a_channel_that_is_closed_is_a_client_that_has_gone(side):
    send, receive = trio.open_memory_channel(0)
    writer = StreamWriter(StreamAnswer(nothing, PACE), ChannelSink(send, lambda answer: None))
    await writer.commit()
    {"receive": receive, "send": send}[side].close()
    with pytest.raises(trio.BrokenResourceError):
        await writer.write(b"x")
    assert writer.lost
