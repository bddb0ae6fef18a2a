"""What was lately seen to work is not tried; what is not is tried once for all who ask."""

from __future__ import annotations

from math import inf

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cortex.service.proof import FAILED, OK, PROBE, TIMED_OUT, TRAFFIC, Proof, Verdict

A, B = frozenset({"a"}), frozenset({"a", "b"})


class Probed:
    """A probe with a scripted result, and the proof over it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.calls = 0
        self.result: str | Exception = OK
        self.gate: trio.Event | None = None
        self.seen_at = -inf
        self.seconds = 30.0
        self.counted: list[str] = []
        self.proof = Proof(
            nursery, self.probe, lambda: self.seconds, lambda: self.seen_at, self.counted.append
        )

    async def probe(self) -> str:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def ask(self, subject: frozenset[object] = A) -> Verdict:
        return await self.proof.verdict(subject)


@pytest.fixture
def probed(nursery):
    return Probed(nursery)


async def test_a_success_holds_for_its_time_and_is_then_tried_again(probed, autojump_clock):
    first = await probed.ask()
    assert (first.ok, first.by, probed.calls) == (True, PROBE, 1)
    await trio.sleep(29)
    assert (await probed.ask(), probed.calls) == (first, 1)
    await trio.sleep(2)
    assert ((await probed.ask()).ok, probed.calls) == (True, 2)
    assert probed.counted == [OK, OK]


async def test_who_asks_at_the_same_time_shares_one_probe(probed, autojump_clock, nursery):
    probed.gate = trio.Event()
    found: list[Verdict] = []

    async def ask() -> None:
        found.append(await probed.ask())

    for _ in range(5):
        nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    probed.gate.set()
    await wait_all_tasks_blocked()
    assert (len(found), probed.calls, {each.ok for each in found}) == (5, 1, {True})


async def test_who_leaves_takes_the_probe_from_nobody(probed, autojump_clock):
    probed.gate = trio.Event()
    with trio.move_on_after(1):
        await probed.ask()
    probed.gate.set()
    assert ((await probed.ask()).ok, probed.calls) == (True, 1)


async def test_a_failure_holds_as_long_whoever_asks(probed, autojump_clock):
    probed.result = FAILED
    for _ in range(20):
        assert (await probed.ask()).result == FAILED
        await trio.sleep(1)
    assert probed.calls == 1
    await trio.sleep(10)
    probed.result = OK
    assert ((await probed.ask()).ok, probed.calls) == (True, 2)


async def test_something_new_is_tried_at_once_after_a_failure(probed, autojump_clock):
    probed.result = FAILED
    await probed.ask(A)
    probed.result = OK
    assert not (await probed.ask(A)).ok
    assert not (await probed.ask(frozenset())).ok
    assert (await probed.ask(B)).ok
    assert probed.calls == 2


async def test_traffic_is_proof_and_ends_a_failure(probed, autojump_clock):
    probed.result = FAILED
    assert not (await probed.ask()).ok
    probed.seen_at = trio.current_time()
    verdict = await probed.ask()
    assert (verdict.ok, verdict.by, probed.calls) == (True, TRAFFIC, 1)
    await trio.sleep(31)
    assert not (await probed.ask()).ok
    assert probed.calls == 2


async def test_a_probe_that_hangs_has_failed_after_its_bound(probed, autojump_clock):
    probed.gate = trio.Event()
    began = trio.current_time()
    assert (await probed.ask()).result == TIMED_OUT
    assert trio.current_time() - began == pytest.approx(10)
    assert probed.counted == [TIMED_OUT]


async def test_a_bug_in_a_probe_is_a_failure_and_not_tried_at_any_rate(
    probed, autojump_clock, caplog
):
    probed.result = ValueError("boom")
    for _ in range(3):
        assert (await probed.ask()).result == FAILED
    assert probed.calls == 1
