from __future__ import annotations

import pytest
import trio
import trio.testing
from fakes.streams import RecordingSink

from cortex.service.http import Pace, StreamAnswer
from cortex.service.pacer import Pacer
from cortex.service.stream import StreamWriter


async def nothing(writer):
    pass


def opened(commit_after=5.0, keep_alive=2.0, fill=lambda: b":") -> StreamWriter:
    pace = Pace(commit_after=commit_after, keep_alive=keep_alive)
    return StreamWriter(StreamAnswer(nothing, pace, filler=fill), RecordingSink())


@pytest.fixture
async def pacer(nursery):
    pacer = Pacer()
    nursery.start_soon(pacer.run)
    await trio.testing.wait_all_tasks_blocked()
    return pacer


async def test_each_stream_keeps_its_own_time(autojump_clock, pacer):
    writers = []
    for _ in range(3):
        writers.append(opened())
        pacer.add(writers[-1])
        await trio.sleep(0.25)
    await trio.sleep(9)
    for writer in writers:
        assert [at for at, _ in writer.sink.chunks] == [5, 7, 9]


async def test_one_that_is_due_sooner_than_those_before_is_not_late(autojump_clock, pacer):
    slow, quick = opened(commit_after=100, keep_alive=100), opened(commit_after=0.5)
    pacer.add(slow)
    await trio.sleep(0.25)
    pacer.add(quick)
    await trio.sleep(1)
    assert [at for at, _ in quick.sink.begun] == [0.5]
    assert slow.sink.begun == []


async def test_writing_puts_a_keep_alive_off(autojump_clock, pacer):
    writer = opened()
    pacer.add(writer)
    await writer.commit()
    for _ in range(5):
        await trio.sleep(1.5)
        await writer.write(b"x")
    await trio.sleep(2.25)
    assert [at for at, data in writer.sink.chunks if data == b":"] == [9.5]


async def test_what_was_removed_or_has_ended_is_left_alone(autojump_clock, pacer):
    removed, ended = opened(), opened()
    entry = pacer.add(removed)
    pacer.add(ended)
    await ended.write(b"x", last=True)
    pacer.remove(entry)
    await trio.sleep(60)
    assert removed.sink.begun == []
    assert ended.sink.body == b"x"
    assert pacer.waiting == 0


async def test_a_stream_whose_filler_fails_takes_no_other_with_it(autojump_clock, pacer, caplog):
    def fail():
        raise ZeroDivisionError

    broken, whole = opened(fill=fail), opened()
    pacer.add(broken)
    pacer.add(whole)
    await trio.sleep(7.5)
    assert [at for at, _ in whole.sink.chunks] == [5, 7]
    assert broken.sink.chunks == []
    assert "no keep-alives" in caplog.text


async def test_many_streams_are_looked_at_once_per_interval_each(autojump_clock, pacer):
    asked = []
    for number in range(200):
        writer = opened(commit_after=0, fill=lambda n=number: asked.append(n) or b":")
        pacer.add(writer)
    await trio.sleep(19)
    assert len(asked) == 200 * 10
