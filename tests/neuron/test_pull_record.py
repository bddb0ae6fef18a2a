"""Rates, remaining times and ends, on a clock that a test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import DiskFull
from cortex.neuron.hub_files import Pulled
from cortex.neuron.pull_record import PullRecord
from cortex.wire import neuron as wire


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(clock: Clock) -> PullRecord:
    return PullRecord(wire.PullRequest("org/m", quant="q8_0"), clock)


def test_nothing_is_known_before_something_came(record: PullRecord) -> None:
    state = record.state()
    assert (state.id, state.source, state.quant) == ("org/m", "org/m", "q8_0")
    assert (state.status, state.stage, state.eta_seconds) == (wire.WAITING, None, None)


def test_what_was_there_already_is_no_rate(record: PullRecord, clock: Clock) -> None:
    record.begin()
    record.report("download", 900, 1000)
    clock.now += 2
    record.report("download", 940, 1000)
    state = record.state()
    assert (state.status, state.bytes_done, state.bytes_total) == (wire.PULLING, 940, 1000)
    assert (state.bytes_per_second, state.eta_seconds, state.seconds) == (20, 3.0, 2.0)


def test_a_rate_is_of_late(record: PullRecord, clock: Clock) -> None:
    done = 0
    record.report("download", 0, 100_000)
    for speed in [1000] * 20 + [100] * 20:
        clock.now += 1
        done += speed
        record.report("download", done, 100_000)
    assert record.state().bytes_per_second == 100


def test_a_rate_falls_while_nothing_comes(record: PullRecord, clock: Clock) -> None:
    record.report("download", 0, 1000)
    clock.now += 1
    record.report("download", 100, 1000)
    clock.now += 9
    assert record.state().bytes_per_second == 10


def test_another_stage_has_a_rate_of_its_own(record: PullRecord, clock: Clock) -> None:
    record.report("verify", 0, 1000)
    clock.now += 1
    record.report("verify", 1000, 1000)
    record.report("download", 0, 5000)
    assert record.state().bytes_per_second is None


def test_the_end_is_told(record: PullRecord, clock: Clock) -> None:
    record.report("download", 0, 10)
    clock.now += 5
    record.succeed(Pulled(Path("/x"), "c0ffee", 10, 7, ("a",), online=False))
    clock.now += 50
    assert record.state() == wire.Pull(
        "org/m",
        wire.PULLED,
        "org/m",
        "q8_0",
        seconds=5.0,
        path="/x",
        commit="c0ffee",
        size=10,
        fetched=7,
        repaired=("a",),
        offline=True,
    )


def test_a_failure_is_told_with_its_code(record: PullRecord) -> None:
    record.fail(DiskFull("no room"))
    state = record.state()
    assert (state.status, state.error, state.code) == (wire.FAILED, "no room", "insufficient_disk")


def test_a_cancelled_pull_is_told(record: PullRecord) -> None:
    record.cancel()
    assert record.state().status == wire.CANCELLED
