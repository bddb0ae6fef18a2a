"""Pre-warming, on the clock of the test."""

from __future__ import annotations

import itertools

import trio
import trio.testing

from cortex.errors import CheckpointError, CortexError, SourceUnavailable
from cortex.neuron.activation import Activation
from cortex.wire import neuron as wire


class Loader:
    """A lifecycle's `load` that takes a second, and fails as it is told, once per entry."""

    def __init__(self, **errors: list[CortexError]) -> None:
        self.errors = errors
        self.calls: list[tuple[float, str]] = []
        self.began = trio.current_time()

    async def __call__(self, request: wire.LoadRequest) -> wire.Model:
        self.calls.append((trio.current_time() - self.began, request.model_id))
        await trio.sleep(1)
        errors = self.errors.get(request.model_id)
        if errors:
            raise errors.pop(0)
        return wire.Model(request.model_id, wire.LOADED)


def requests(*names: str) -> list[wire.LoadRequest]:
    return [wire.LoadRequest(name) for name in names]


async def test_models_are_loaded_one_after_the_other(autojump_clock: object) -> None:
    loader = Loader()
    activation = Activation(loader, requests("a", "b", "c"))
    assert activation.state() == wire.Activation("pre_warming", ("a", "b", "c"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(activation.run)
        await trio.sleep(1.5)
        assert activation.state() == wire.Activation("pre_warming", ("c",), "b", ("a",))
    assert activation.state() == wire.Activation("ready", completed=("a", "b", "c"))
    assert loader.calls == [(0, "a"), (1, "b"), (2, "c")]


async def test_with_nothing_to_load_it_is_ready() -> None:
    assert Activation(Loader(), ()).state() == wire.Activation("ready")


async def test_files_out_of_reach_are_tried_again_ever_later(autojump_clock: object) -> None:
    loader = Loader(a=[SourceUnavailable("down") for _ in range(6)])
    activation = Activation(loader, requests("a"))
    await activation.run()
    times = [time for time, _ in loader.calls]
    assert [later - earlier - 1 for earlier, later in itertools.pairwise(times)] == [
        10,
        20,
        40,
        80,
        160,
        300,
    ]
    assert activation.state() == wire.Activation("ready", completed=("a",))


async def test_in_the_end_a_model_is_given_up_and_the_next_is_loaded(
    autojump_clock: object,
) -> None:
    loader = Loader(a=[SourceUnavailable("down") for _ in range(7)])
    activation = Activation(loader, requests("a", "b"))
    await activation.run()
    assert [name for _, name in loader.calls] == ["a"] * 7 + ["b"]
    assert activation.state() == wire.Activation(
        "ready", completed=("b",), failed=(wire.FailedModel("a", "down"),)
    )


async def test_what_is_wrong_with_a_model_is_not_tried_again(autojump_clock: object) -> None:
    loader = Loader(a=[CheckpointError("truncated")])
    activation = Activation(loader, requests("a", "b"))
    await activation.run()
    assert [name for _, name in loader.calls] == ["a", "b"]
    assert activation.state().failed == (wire.FailedModel("a", "truncated"),)
