"""Who may take how much of a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import DeviceOutOfMemory
from cortex.neuron.ledger import (
    BLOCK_SLACK,
    LEAST_CONTEXT,
    Ledger,
    kv_budget,
    mib,
)

MIB = 1 << 20
GIB = 1 << 30


def budget(**changes: object) -> int:
    options: dict[str, object] = {
        "kind": "cuda",
        "total": 100 * GIB,
        "remaining": 80 * GIB,
        "bytes_per_token": 100_000,
        "context": 40_000,
        "explicit_context": False,
    }
    return kv_budget(**(options | changes))  # type: ignore[arg-type]


def test_a_gpu_leaves_half_of_what_remains_for_a_second_model() -> None:
    assert budget() == 40 * GIB


def test_a_cpu_gives_a_quarter_of_its_budget() -> None:
    assert budget(kind="cpu", bytes_per_token=1_000_000, context=10_000) == 25 * GIB


def test_a_tiny_model_takes_no_more_than_its_batch_can_use() -> None:
    got = budget(kind="cpu", bytes_per_token=100, context=2048)
    assert got == 100 * (2048 + BLOCK_SLACK) * 4


def test_one_full_sequence_goes_before_the_share() -> None:
    assert budget(remaining=5 * GIB) == 100_000 * (40_000 + BLOCK_SLACK)


def test_the_context_shrinks_to_what_is_there_when_nobody_asked_for_it() -> None:
    assert budget(remaining=2 * GIB) == 2 * GIB


def test_a_context_that_was_asked_for_must_fit() -> None:
    with pytest.raises(DeviceOutOfMemory) as caught:
        budget(remaining=2 * GIB, explicit_context=True)
    assert caught.value.extras["required_mb"] > caught.value.extras["free_mb"] == 2048


def test_less_than_the_least_context_is_refused() -> None:
    least = 100_000 * (LEAST_CONTEXT + BLOCK_SLACK)
    assert budget(remaining=least) == least
    for remaining in (least - 1, 0, -GIB):
        with pytest.raises(DeviceOutOfMemory):
            budget(remaining=remaining)


def test_reserve_settle_release() -> None:
    ledger = Ledger(0, 100)
    reservation = ledger.reserve("a", {"weights": 50, "kv": 30})
    assert (ledger.used, ledger.free, ledger.promised) == (80, 20, 80)
    reservation.settle({"weights": 45, "kv": 30})
    assert (ledger.used, ledger.promised, ledger.used_by("a")) == (75, 0, 75)
    reservation.release()
    reservation.release()
    assert (ledger.used, ledger.used_by("a")) == (0, None)


def test_a_block_that_fails_gives_its_reservation_back() -> None:
    ledger = Ledger(0, 100)
    with pytest.raises(KeyboardInterrupt), ledger.reserve("a", {"weights": 50}):
        raise KeyboardInterrupt
    assert ledger.used == 0
    with ledger.reserve("a", {"weights": 50}):
        pass
    assert ledger.used == 50


def test_a_late_release_does_not_take_a_later_loads_rows() -> None:
    ledger = Ledger(0, 100)
    first = ledger.reserve("a", {"weights": 50})
    first.release()
    ledger.reserve("a", {"weights": 60})
    first.release()
    assert ledger.used == 60


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    ledger = Ledger(3, 100 * MIB)
    ledger.reserve("a", {"weights": 60 * MIB})
    with pytest.raises(DeviceOutOfMemory) as caught:
        ledger.reserve("b", {"weights": 40 * MIB, "kv": 1})
    assert caught.value.extras == {"required_mb": 41, "free_mb": 40}
    assert "device 3" in caught.value.message


def test_the_devices_own_figure_counts_what_others_took() -> None:
    ledger = Ledger(0, 100)
    assert ledger.available(None) == 100
    assert ledger.available(30) == 30
    ledger.reserve("a", {"weights": 20})  # promised: the device does not show it yet
    assert ledger.available(30) == 10
    ledger.settle("a", {"weights": 20})
    assert ledger.available(30) == 30
    assert ledger.available(1000) == 80
    assert ledger.available(-5) == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 60), st.integers(0, 60))))
def test_the_books_balance(moves: list[tuple[str, int, int]]) -> None:
    ledger, held = Ledger(0, 100), {}
    for name, estimated, measured in moves:
        if name in held:
            held.pop(name).release()
            continue
        try:
            reservation = ledger.reserve(name, {"kv": estimated})
        except DeviceOutOfMemory:
            assert estimated > ledger.free
            continue
        reservation.settle({"kv": min(measured, estimated)})
        held[name] = reservation
        assert ledger.used <= ledger.total
    for reservation in held.values():
        reservation.release()
    assert ledger.used == ledger.promised == 0


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 1), (MIB, 1), (MIB + 1, 2)])
def test_mib_rounds_up(size: int, expected: int) -> None:
    assert mib(size) == expected
