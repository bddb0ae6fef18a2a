from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry

from cortex.service import disk
from cortex.service.disk import BOUND, INTERVAL, DiskMonitor, Room, room_at
from cortex.service.metrics import render


def shown(monitor: DiskMonitor) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["path_kind"]): sample.value
        for family in monitor.collect()
        for sample in family.samples
    }


def test_the_room_is_the_file_systems(tmp_path):
    told = os.statvfs(tmp_path)
    room = room_at(tmp_path)
    assert room.size == told.f_blocks * told.f_frsize
    assert 0 < room.free <= room.size


def test_a_path_that_is_yet_to_be_made_has_the_room_of_its_parent(tmp_path):
    assert room_at(tmp_path / "a" / "b").size == room_at(tmp_path).size


def test_a_path_below_a_file_has_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        room_at(tmp_path / "file" / "below")


async def test_each_look_takes_the_place_of_the_last(monkeypatch):
    rooms = iter([Room(5, 9), Room(4, 9)])
    monkeypatch.setattr(disk, "room_at", lambda path: next(rooms))
    monitor = DiskMonitor("free", "size", {"state": Path("/x")})
    assert shown(monitor) == {}
    await monitor.look()
    assert shown(monitor) == {("free", "state"): 5, ("size", "state"): 9}
    await monitor.look()
    assert shown(monitor)["free", "state"] == 4


async def test_what_cannot_be_read_is_left_out_and_told_once(monkeypatch, caplog):

    def read(path: Path) -> Room:
        if path.name == "gone":
            raise OSError(5, "Input/output error")
        return Room(1, 2)

    monkeypatch.setattr(disk, "room_at", read)
    monitor = DiskMonitor("free", "size", {"state": Path("/x"), "models": Path("/gone")})
    await monitor.look()
    await monitor.look()
    assert shown(monitor) == {("free", "state"): 1, ("size", "state"): 2}
    assert caplog.text.count("free space not known") == 1


async def test_a_file_system_that_hangs_holds_nobody_up(monkeypatch, autojump_clock, nursery):
    answer, begun, reads = threading.Event(), threading.Event(), []

    def read(path: Path) -> Room:
        reads.append(path)
        begun.set()
        answer.wait(10)
        return Room(1, 2)

    monkeypatch.setattr(disk, "room_at", read)
    monitor = DiskMonitor("free", "size", {"models": Path("/nfs")})
    try:
        nursery.start_soon(monitor.run)
        with trio.fail_after(3 * (INTERVAL + BOUND)):
            await trio.sleep(2 * (INTERVAL + BOUND))
        assert shown(monitor) == {}
        assert begun.wait(10)  # the clock may be ahead of a thread's start
        assert len(reads) == 1  # no thread is added to one that hangs
    finally:
        answer.set()


def test_it_can_be_scraped_before_the_first_look():
    registry = CollectorRegistry()
    registry.register(DiskMonitor("free", "size", {"state": Path("/x")}))
    assert "# TYPE free gauge" in render(registry).decode()
