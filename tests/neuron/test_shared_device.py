"""Several models with the real engine on one device, and memory that is short."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from fakes.checkpoints import write_checkpoint
from fakes.real_lifecycle import generate, neuron, request, token_of

from cortex.engine.load import checkpoint
from cortex.engine.memory import held
from cortex.engine.runner import Runner
from cortex.engine.throttle import LIMIT
from cortex.errors import CortexError, DeviceOutOfMemory
from cortex.neuron.jobs import OpenedEngine
from cortex.neuron.ledger import Ledger, mib
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.loader import _reconcile
from cortex.wire import neuron as wire

MIB = 1 << 20
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def ledger_of(lifecycle: Lifecycle) -> Ledger:
    return lifecycle._slots[0].ledger


async def size_of(root: Path) -> int:
    async with neuron(root) as lifecycle:
        estimate = await lifecycle.estimate(wire.LoadRequest("a"))
        return estimate.total_bytes


async def test_two_models_share_a_device_and_a_third_waits_for_its_turn(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_checkpoint(tmp_path / name, seed=seed)
    one = await size_of(tmp_path)
    async with neuron(tmp_path, total=2 * one + one // 4) as lifecycle:
        ledger = ledger_of(lifecycle)
        for name in "ab":
            model = await lifecycle.load(wire.LoadRequest(name))
            assert model.vram_used_mb == mib(
                sum(size for row, size in ledger.rows()[name].items() if row != "workspace")
            )
        with pytest.raises(DeviceOutOfMemory) as caught:
            await lifecycle.load(wire.LoadRequest("c"))
        assert caught.value.extras["required_mb"] > caught.value.extras["free_mb"]
        assert set(ledger.rows()) == {"a", "b"}
        first = {name: await generate(lifecycle, name, name) for name in "ab"}
        assert first["a"] != first["b"]
        for turn in range(3):
            for name in "ab":
                assert await generate(lifecycle, name, f"{name}{turn}") == first[name]
        await lifecycle.unload("a")
        assert set(ledger.rows()) == {"b"}
        await lifecycle.load(wire.LoadRequest("c"))
        assert len(await generate(lifecycle, "c", "c")) == 12
        assert await generate(lifecycle, "b", "again") == first["b"]
        for name in "bc":
            await lifecycle.unload(name)
        assert ledger.used == 0


async def test_a_load_tells_what_was_estimated_measured_and_how_long_it_took(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "a")
    landed: list[tuple[str, CortexError | None, set[str]]] = []
    async with neuron(tmp_path) as lifecycle:
        lifecycle.on_landed = lambda name, error, seconds: landed.append(
            (name, error, set(seconds))
        )
        estimate = await lifecycle.estimate(wire.LoadRequest("a"))
        await lifecycle.load(wire.LoadRequest("a"))
        assert ledger_of(lifecycle).estimates() == {"a": estimate.rows}
        errors = dict(lifecycle.estimate_errors())
        assert set(errors) == (set() if held(torch.device("cpu")) is None else {"a"})
    assert landed == [("a", None, {"resolve", "text", "plan", "headers", "weights", "kv"})]


@pytest.mark.parametrize(
    ("estimated", "measured", "told"),
    [(1000, 1000, 0), (1049, 1000, 0), (1200, 1000, 1), (800, 1000, 1), (60, 50, 0)],
)
def test_an_estimate_that_was_wrong_is_logged(
    estimated: int, measured: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    opened = OpenedEngine(1, 0, 0, measured_weights=measured * MIB)
    with caplog.at_level(logging.WARNING):
        error = _reconcile("a", estimated * MIB, opened)
    assert error == pytest.approx(estimated / measured - 1)
    assert len(caplog.records) == told


def test_what_nobody_measured_has_no_error() -> None:
    assert _reconcile("a", 5 * MIB, OpenedEngine(1, 0, 0)) is None


@pytest.mark.parametrize("stage", ["weights", "kv", "runner"])
async def test_memory_that_runs_out_during_a_load_leaks_nothing_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2)
    made: list[weakref.ref[Any]] = []
    decoder = checkpoint.Decoder

    def recording(*arguments: Any, **options: Any) -> Any:
        model = decoder(*arguments, **options)
        made.append(weakref.ref(model))
        return model

    def full(*_: Any, **__: Any) -> Any:
        raise FULL

    async with neuron(tmp_path) as lifecycle:
        await lifecycle.load(wire.LoadRequest("a"))
        alone = await generate(lifecycle, "a", "alone", 40)
        rows = ledger_of(lifecycle).rows()
        with monkeypatch.context() as patch, lifecycle.lease("a") as loaded:
            patch.setattr(checkpoint, "Decoder", recording)
            if stage == "weights":
                patch.setattr("cortex.engine.layers.linear.Linear.finish", full)
            elif stage == "kv":
                patch.setattr(checkpoint, "KVCache", full)
            else:
                patch.setattr(checkpoint, "Runner", full)
            async with loaded.engine.stream(request("r", max_tokens=40)) as stream:
                with pytest.raises(DeviceOutOfMemory):
                    await lifecycle.load(wire.LoadRequest("b"))
                assert [token_of(e) async for events in stream for e in events] == alone
        assert ledger_of(lifecycle).rows() == rows
        assert {m.id: m.status for m in lifecycle.models()} == {"a": "loaded", "b": "failed"}
        assert made
        assert [ref() for ref in made if ref() is not None] == []
        await lifecycle.load(wire.LoadRequest("b"))
        assert len(await generate(lifecycle, "b", "b")) == 12


class Short:
    """Makes steps run out of memory: the next *times* of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        launch = Runner.launch

        def launching(runner: Runner, plan: Any) -> Any:
            if self.times:
                self.times -= 1
                raise FULL
            return launch(runner, plan)

        monkeypatch.setattr(Runner, "launch", launching)


async def test_a_step_that_runs_out_of_memory_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "a")
    short = Short(monkeypatch)
    async with neuron(tmp_path) as lifecycle:
        await lifecycle.load(wire.LoadRequest("a"))
        alone = await generate(lifecycle, "a", "alone")
        short.times = 2
        results: list[list[int]] = []

        async def one(name: str) -> None:
            results.append(await generate(lifecycle, "a", name))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, str(number))
        assert results == [alone] * 6
        ((_, stats),) = lifecycle.engine_stats()
        assert stats is not None
        assert stats.out_of_memory == 2
        assert lifecycle.revivals() == ()


async def test_an_engine_that_has_no_memory_at_all_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "a")
    short = Short(monkeypatch)
    async with neuron(tmp_path) as lifecycle:
        await lifecycle.load(wire.LoadRequest("a"))
        alone = await generate(lifecycle, "a", "alone")
        short.times = LIMIT
        failures: list[CortexError] = []

        async def one(name: str) -> None:
            try:
                await generate(lifecycle, "a", name)
            except CortexError as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            for number in range(LIMIT + 3):
                nursery.start_soon(one, str(number))
        assert len(failures) == LIMIT + 3
        assert {type(error) for error in failures} == {DeviceOutOfMemory}
        await lifecycle.load(wire.LoadRequest("a"))  # joins the load that brings it back
        assert lifecycle.revivals() == (("a", 1),)
        assert not lifecycle.recovering
        assert await generate(lifecycle, "a", "again") == alone
