"""From plans to tensors."""

from __future__ import annotations

import torch

from cortex.engine.batch import Batch, BatchBuilder
from cortex.engine.request import Request, SamplingParams
from cortex.engine.scheduler import Chunk, Plan
from cortex.engine.sequence import Sequence

NULL = 99


def builder() -> BatchBuilder:
    return BatchBuilder(
        rows=4,
        blocks_per_row=8,
        block_size=4,
        null_block=NULL,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def sequence(row: int, length: int, blocks: list[int], computed: int) -> Sequence:
    request = Request(str(row), tuple(range(length)), SamplingParams(), 5)
    made = Sequence(request, seed=0, limit=100, arrival=row, row=row, blocks=blocks)
    made.computed = computed
    return made


def decode(*sequences: Sequence) -> Plan:
    return Plan(tuple(Chunk(s, s.computed, 1, True) for s in sequences), (), ())


def build(made: BatchBuilder, plan: Plan) -> Batch:
    return made.build(plan)


def test_decodes_come_first_longest_first_then_the_chunks():
    short, long = sequence(0, 3, [7], 2), sequence(1, 10, [3, 1, 2], 9)
    prompt = sequence(2, 9, [4, 5, 6], 2)
    plan = Plan(decode(short, long).decodes, (Chunk(prompt, 2, 5, False),), ())
    batch = build(builder(), plan)
    assert [chunk.sequence for chunk in batch.chunks] == [long, short, prompt]
    assert batch.tokens.tolist() == [9, 2, 2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [9, 2, 2, 3, 4, 5, 6]
    assert batch.slots.tolist() == [2 * 4 + 1, 7 * 4 + 2, 18, 19, 20, 21, 22]
    assert batch.drawn == (long, short)
    assert batch.draws.tolist() == [0, 1]


def test_rows_of_different_lengths_are_padded_with_the_null_block_and_masked():
    long, short = sequence(0, 8, [5, 3], 7), sequence(1, 2, [6], 1)
    batch = build(builder(), decode(short, long))
    assert batch.draws is None
    (group,) = batch.view(None).groups
    assert group.keys.blocks.tolist() == [5, 3, 6, NULL]
    assert group.keys.length == 8
    seen = (group.mask == 0).sum(-1).flatten().tolist()
    assert seen == [8, 2]


def test_what_would_be_padded_to_more_than_double_is_a_group_of_its_own():
    sequences = [sequence(0, 32, list(range(8)), 31), sequence(1, 4, [9], 3)]
    groups = build(builder(), decode(*sequences)).view(None).groups
    assert [(group.first, group.keys.count) for group in groups] == [(0, 8), (1, 1)]
    assert groups[0].keys.run == 0
    assert groups[0].mask is None


def test_a_window_leaves_out_the_blocks_before_it():
    one = sequence(0, 20, [4, 9, 2, 7, 5], 19)
    view = build(builder(), decode(one)).view(6)
    (group,) = view.groups
    assert group.keys.blocks.tolist() == [7, 5]  # positions 14 to 19 lie in blocks 3 and 4
    assert (group.mask == 0).flatten().tolist() == [False, False] + [True] * 6


def test_a_row_shows_the_blocks_of_whom_it_belongs_to_now():
    made = builder()
    one = sequence(0, 8, [1, 2], 7)
    assert build(made, decode(one)).slots.tolist() == [11]
    grown = one.blocks
    grown.append(6)
    one.tokens.append(0)
    one.computed = 8
    assert build(made, decode(one)).slots.tolist() == [24]
    one.blocks, one.preemptions = [5, 4, 3], 1  # preempted, and back in the same row
    assert build(made, decode(one)).slots.tolist() == [12]
    assert build(made, decode(one)).view(None).groups[0].keys.blocks.tolist() == [5, 4, 3]
    other = sequence(0, 2, [8], 1)
    keys = build(made, decode(other)).view(None).groups[0].keys
    assert keys.blocks.tolist() == [8]


def test_what_kernels_read_says_where_each_chunk_lies():
    one, two = sequence(0, 6, [3, 8], 5), sequence(1, 11, [1, 2, 9], 10)
    prompt = sequence(2, 9, [4, 5, 6], 2)
    batch = build(builder(), Plan(decode(one, two).decodes, (Chunk(prompt, 2, 5, False),), ()))
    assert batch.tables.tolist() == [[1, 2, 9], [3, 8, NULL], [4, 5, 6]]
    assert batch.tables.dtype == batch.firsts.dtype == batch.lengths.dtype == torch.int32
    assert batch.firsts.tolist() == [0, 1, 2, 7]
    assert batch.lengths.tolist() == [11, 6, 7]
    assert (batch.decodes, batch.longest) == (2, 11)
