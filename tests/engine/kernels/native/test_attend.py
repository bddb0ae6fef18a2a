"""Paged attention against softmax written out in fp64."""

from __future__ import annotations

import attrs
import pytest
import torch

from cortex.engine.kernels.native.ops import NativeOps


@attrs.frozen(eq=False)
class Rows:
    """What `attend` reads of a Batch."""

    tables: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    decodes: int
    longest: int


@attrs.frozen(eq=False)
class Case:
    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: Rows
    window: int | None


def case(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    block: int = 8,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Rows in decode of these lengths, then chunks of (start, count); blocks in random order."""
    generator = torch.Generator().manual_seed(7)
    lengths = decodes + [start + count for start, count in chunks]
    counts = [1] * len(decodes) + [count for _, count in chunks]
    needed = [-(-length // block) for length in lengths]
    total = sum(needed)
    order = torch.randperm(total, generator=generator).int()
    tables = torch.full((len(lengths), max(needed)), total, dtype=torch.int32)
    for i, ids in enumerate(order.split(needed)):
        tables[i, : len(ids)] = ids
    shape = (total + 1, block, kv_heads, dim)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    firsts = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)], dtype=torch.int32)
    q = (torch.randn(sum(counts), heads, dim, generator=generator) * 3).to(dtype)
    batch = Rows(
        tables, firsts, torch.tensor(lengths, dtype=torch.int32), len(decodes), max(lengths)
    )
    return Case(q, keys, values, batch, window)


def oracle(given: Case) -> torch.Tensor:
    q, batch = given.q.double(), given.batch
    heads, dim = q.shape[1:]
    group = heads // given.keys.shape[2]
    out = torch.empty(len(q), heads, dim, dtype=torch.float64)
    for i, length in enumerate(batch.lengths.tolist()):
        blocks = batch.tables[i].long()
        k = given.keys[blocks].flatten(0, 1)[:length].double().repeat_interleave(group, 1)
        v = given.values[blocks].flatten(0, 1)[:length].double().repeat_interleave(group, 1)
        first, stop = batch.firsts[i : i + 2].tolist()
        for row in range(first, stop):
            position = length - (stop - row)
            low = 0 if given.window is None else max(0, position + 1 - given.window)
            seen = slice(low, position + 1)
            scores = torch.einsum("hd,thd->ht", q[row], k[seen]) * dim**-0.5
            out[row] = torch.einsum("ht,thd->hd", scores.softmax(-1), v[seen])
    return out.flatten(1)


def attend(ops: NativeOps, given: Case) -> torch.Tensor:
    return ops.attend(given.q, given.keys, given.values, given.batch, given.window)


def check(ops: NativeOps, given: Case) -> None:
    found, wanted = attend(ops, given).double(), oracle(given)
    bound = 6e-3 if given.q.dtype is torch.bfloat16 else 2e-6
    assert (found - wanted).norm() / wanted.norm() < bound
    assert (found - wanted).abs().max() < 8 * bound


DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def ops(library) -> NativeOps:
    return NativeOps(library)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1), (7, 1), (12, 4)])
@pytest.mark.parametrize("dim", [16, 24, 80, 128])
def test_heads_share_keys_in_groups(ops, heads, kv_heads, dim, dtype):
    check(
        ops,
        case([1, 40, 9], [(0, 5), (13, 20)], heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 3, 8, 33, 700])
def test_a_window_hides_what_is_behind_it(ops, window, dtype):
    check(ops, case([1, 2, 33, 90], [(0, 70), (41, 3), (90, 66)], window=window, dtype=dtype))


@pytest.mark.parametrize("dim", [2, 6, 34, 256, 1024])
def test_any_even_head_dimension(ops, dim):
    check(ops, case([5, 33], [(7, 6)], dim=dim))


@pytest.mark.parametrize("block", [1, 16, 32, 64, 100])
def test_any_block_size(ops, block):
    check(ops, case([5, 130], [(60, 77)], block=block))


@pytest.mark.parametrize("window", [None, 40, 600])
@pytest.mark.parametrize("length", [511, 512, 513, 1600])
def test_long_rows_are_cut_into_segments_and_merged(ops, length, window):
    check(ops, case([length, 3, 1030], [], block=32, window=window))


def test_a_group_wider_than_a_tile(ops):
    check(ops, case([9], [(3, 5)], heads=70, kv_heads=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_do_not_overflow(ops, dtype):
    given = case([30], [(10, 40)], dtype=dtype)
    given.q.mul_(60)
    found, wanted = attend(ops, given).double(), oracle(given)
    assert (found - wanted).abs().max() < 3e-2


def test_results_do_not_depend_on_threads_or_on_other_rows(ops):
    lengths = [1500, 40, 700]
    given = case(lengths, [(20, 90)], block=32)
    alone = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            alone.append(attend(ops, given))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0], alone[2])
    batch = given.batch
    for i, length in enumerate(lengths):
        one = Rows(
            batch.tables[i : i + 1], torch.tensor([0, 1]).int(), batch.lengths[i : i + 1], 1, length
        )
        found = attend(ops, Case(given.q[i : i + 1], given.keys, given.values, one, None))
        assert torch.equal(found[0], alone[0][i])


def test_what_is_not_a_number_stays_with_its_sequence(ops):
    given = case([40, 12], [(4, 9), (0, 6)])
    first, third = given.batch.tables[0, 1], given.batch.tables[2, 0]
    given.values[first, 2] = float("nan")
    given.keys[third, 1] = float("nan")
    finite = attend(ops, given).isfinite().all(-1).tolist()
    rows = given.batch.firsts.tolist()
    assert finite == [False, True] + [False] * 9 + [True] * (rows[-1] - rows[3])


def test_masked_keys_beyond_the_last_position_are_not_read(ops):
    given = case([3], [(0, 5)])
    wanted = attend(ops, given)
    for i, length in enumerate((3, 5)):
        given.keys[given.batch.tables[i, 0], length:] = float("nan")
        given.values[given.batch.tables[i, 0], length:] = float("nan")
    assert torch.equal(attend(ops, given), wanted)
