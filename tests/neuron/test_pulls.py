"""Whose turn it is, who joins whom, and how pulls end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from cortex.errors import (
    Conflict,
    DiskFull,
    Draining,
    InternalError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from cortex.neuron.hub_files import Pulled
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.metrics import PullMetrics
from cortex.neuron.pulls import AT_A_TIME, KEPT, KEPT_SECONDS, MOST, Pulls
from cortex.wire import neuron as wire


@attrs.define(eq=False)
class GatedSources:
    """Pulls that stand still until ``gate`` is set; ``errors`` are raised, one a pull."""

    gate: trio.Event = attrs.field(factory=trio.Event)
    errors: list[Exception] = attrs.field(factory=list)
    calls: list[tuple[str | None, str, str | None, bool]] = attrs.field(factory=list)

    async def pull(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        verify: bool = False,
    ) -> Pulled:
        self.calls.append((source, model_id, quant, verify))
        progress("download", 1, 4)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return Pulled(Path("/x"), "c", 4, 3)


@attrs.define(eq=False)
class Owner:
    pulls: Pulls
    sources: GatedSources
    ended: list[wire.Pull]
    now: list[float]


@asynccontextmanager
async def owner() -> AsyncIterator[Owner]:
    sources, ended, now = GatedSources(), list[wire.Pull](), [0.0]
    pulls = Pulls(sources, ended.append, lambda: now[0])
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(pulls.run)
            yield Owner(pulls, sources, ended, now)
            nursery.cancel_scope.cancel()


def asked(model_id: str = "m", **fields: object) -> wire.PullRequest:
    return wire.PullRequest(model_id, **fields)  # type: ignore[arg-type]


def statuses(pulls: Pulls) -> list[str]:
    return [pull.status for pull in pulls.states()]


async def test_all_who_ask_for_the_same_share_one_pull() -> None:
    async with owner() as it:
        got: list[wire.Pull] = []

        async def ask() -> None:
            got.append(await it.pulls.pull(asked(source="org/m")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert it.pulls.start(asked("alias", source="org/m")).id == "m"
            (state,) = it.pulls.states()
            assert (state.status, state.stage, state.bytes_done) == (wire.PULLING, "download", 1)
            it.sources.gate.set()
        assert it.sources.calls == [("org/m", "m", None, False)]
        assert [(pull.status, pull.fetched) for pull in got] == [(wire.PULLED, 3)] * 3
        assert len(it.ended) == 1


async def test_other_files_are_another_pull() -> None:
    async with owner() as it:
        for quant in ("q4", "q8"):
            it.pulls.start(asked(quant=quant))
        await wait_all_tasks_blocked()
        assert {quant for _, _, quant, _ in it.sources.calls} == {"q4", "q8"}


async def test_a_pull_goes_on_when_who_asked_leaves() -> None:
    async with owner() as it:
        with trio.move_on_after(0):
            await it.pulls.pull(asked())
        it.sources.gate.set()
        await wait_all_tasks_blocked()
        assert statuses(it.pulls) == [wire.PULLED]


async def test_a_few_run_at_a_time_and_the_others_wait() -> None:
    async with owner() as it:
        for number in range(AT_A_TIME + 2):
            it.pulls.start(asked(f"m{number}"))
        await wait_all_tasks_blocked()
        assert sorted(statuses(it.pulls)) == [wire.PULLING] * AT_A_TIME + [wire.WAITING] * 2
        assert it.pulls.under_way == AT_A_TIME + 2
        it.sources.gate.set()
        await wait_all_tasks_blocked()
        assert statuses(it.pulls) == [wire.PULLED] * (AT_A_TIME + 2)


async def test_more_than_can_wait_are_refused() -> None:
    async with owner() as it:
        for number in range(MOST):
            it.pulls.start(asked(f"m{number}"))
        with pytest.raises(Overloaded):
            it.pulls.start(asked("one-more"))
        assert it.pulls.start(asked("m0")).id == "m0"


async def test_a_failure_is_told_to_each_and_the_next_one_tries_again() -> None:
    async with owner() as it:
        it.sources.errors = [DiskFull("no room", extras={"free_mb": 1})]
        it.sources.gate.set()
        with pytest.raises(DiskFull, match="no room") as caught:
            await it.pulls.pull(asked())
        assert caught.value.extras == {"free_mb": 1}
        (state,) = it.pulls.states()
        assert (state.status, state.code) == (wire.FAILED, "insufficient_disk")
        assert (await it.pulls.pull(asked())).status == wire.PULLED


async def test_a_bug_ends_the_pull_and_not_the_neuron() -> None:
    async with owner() as it:
        it.sources.errors = [ZeroDivisionError("secret")]
        it.sources.gate.set()
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await it.pulls.pull(asked())
        assert (await it.pulls.pull(asked())).status == wire.PULLED


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_pull_is_cancelled_running_or_waiting(waiting: bool) -> None:
    async with owner() as it:
        for number in range(AT_A_TIME if waiting else 0):
            it.pulls.start(asked(f"m{number}"))
        await wait_all_tasks_blocked()
        it.pulls.start(asked("gone"))
        await wait_all_tasks_blocked()
        await it.pulls.cancel("gone")
        assert statuses(it.pulls)[-1] == wire.CANCELLED
        with pytest.raises(ModelNotFound):
            await it.pulls.cancel("gone")
        assert it.ended[-1].status == wire.CANCELLED


async def test_none_joins_a_pull_that_is_being_cancelled() -> None:
    async with owner() as it:
        it.pulls.start(asked("m"))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.pulls.cancel, "m")
            with trio.fail_after(1):
                while not it.pulls._flights[0].scope.cancel_called:
                    await trio.lowlevel.checkpoint()
            it.pulls.start(asked("m"))
        it.sources.gate.set()
        await wait_all_tasks_blocked()
        assert statuses(it.pulls) == [wire.CANCELLED, wire.PULLED]


async def test_who_waits_for_a_cancelled_pull_is_told() -> None:
    async with owner() as it, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(Conflict, match="was cancelled"):
                await it.pulls.pull(asked())

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await it.pulls.cancel("m")


async def test_what_is_being_pulled_is_verified_after_that() -> None:
    async with owner() as it:
        it.pulls.start(asked())
        with pytest.raises(Conflict, match="after that"):
            it.pulls.start(asked(verify=True))
        it.sources.gate.set()
        await wait_all_tasks_blocked()
        it.pulls.start(asked(verify=True))
        await wait_all_tasks_blocked()
        assert it.sources.calls[-1] == (None, "m", None, True)


async def test_a_neuron_that_shuts_down_stops_them_and_begins_none() -> None:
    async with owner() as it:
        it.pulls.start(asked())
        await wait_all_tasks_blocked()
        it.pulls.close()
        await wait_all_tasks_blocked()
        assert statuses(it.pulls) == [wire.CANCELLED]
        with pytest.raises(Draining):
            it.pulls.start(asked())


async def test_before_it_runs_nothing_is_begun() -> None:
    with pytest.raises(Unavailable, match="still starting"):
        Pulls(GatedSources()).start(asked())


async def test_what_has_ended_is_shown_for_a_while() -> None:
    async with owner() as it:
        it.sources.gate.set()
        for number in range(KEPT + 5):
            await it.pulls.pull(asked(f"m{number}"))
        assert next(pull.id for pull in it.pulls.states()) == "m5"
        it.now[0] += KEPT_SECONDS + 1
        assert it.pulls.states() == ()


async def test_pulls_are_counted() -> None:
    registry = CollectorRegistry()
    told = PullMetrics(registry, lambda: 3)
    told.ended(wire.Pull("m", wire.PULLED, fetched=10))
    told.ended(wire.Pull("m", wire.FAILED))
    value = registry.get_sample_value
    assert value("neuron_pulls_total", {"result": "pulled"}) == 1
    assert value("neuron_pulls_total", {"result": "failed"}) == 1
    assert value("neuron_pulled_bytes_total") == 10
    assert value("neuron_pulls_under_way") == 3
