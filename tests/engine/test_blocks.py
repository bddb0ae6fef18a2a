"""Laws of the block pool."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.blocks import BlockPool, block_hash, root_hash


def test_a_block_is_given_out_once_until_it_is_released():
    pool = BlockPool(3, 4)
    taken = pool.allocate(3)
    assert sorted(taken) == [0, 1, 2]
    with pytest.raises(ValueError, match="0 free"):
        pool.allocate(1)
    pool.release(taken[:1])
    assert pool.allocate(1) == taken[:1]


def test_a_refused_allocation_takes_nothing():
    pool = BlockPool(3, 4)
    pool.allocate(1)
    with pytest.raises(ValueError, match="asked"):
        pool.allocate(3)
    assert pool.free == 2
    pool.check_integrity()


def test_a_released_prefix_is_found_until_its_blocks_are_given_away():
    pool = BlockPool(3, 2)
    first, second = (hashes := chain([1, 2, 3, 4]))
    blocks = pool.allocate(2)
    pool.register(blocks[0], first)
    pool.register(blocks[1], second)
    pool.release(blocks)
    assert pool.match(hashes) == blocks
    pool.allocate(2)  # the one without contents, then the suffix
    assert pool.match(hashes) == blocks[:1]


def test_suffixes_are_given_away_before_prefixes_and_the_oldest_sequence_first():
    pool = BlockPool(4, 1)
    old, new = pool.allocate(2), pool.allocate(2)
    for block, digest in zip((*old, *new), (*chain([1, 2], 1), *chain([8, 9], 1)), strict=True):
        pool.register(block, digest)
    pool.release(old)
    pool.release(new)
    order = [pool.allocate(1)[0] for _ in range(4)]
    assert order == [old[1], old[0], new[1], new[0]]


def test_a_held_prefix_survives_a_full_pool():
    pool = BlockPool(2, 1)
    digest = chain([5], 1)
    block = pool.allocate(1)
    pool.register(block[0], digest[0])
    pool.release(block)
    pool.hold(block)
    pool.allocate(1)
    assert pool.match(digest) == block
    assert pool.free == 0


def test_a_block_with_known_contents_keeps_the_name_when_another_gets_them():
    pool = BlockPool(2, 1)
    one, two = pool.allocate(2)
    digest = chain([5], 1)[0]
    pool.register(one, digest)
    pool.register(two, digest)
    assert pool.match([digest]) == [one]
    pool.forget(two)
    assert pool.match([digest]) == [one]
    pool.forget(one)
    assert pool.match([digest]) == []


def test_releasing_more_often_than_holding_is_an_error():
    pool = BlockPool(1, 1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="more often"):
        pool.release(blocks)


def test_the_integrity_check_sees_a_torn_list_and_a_leak():
    torn = BlockPool(3, 1)
    torn._next[0] = 2
    with pytest.raises(AssertionError):
        torn.check_integrity()
    leaked = BlockPool(3, 1)
    leaked._refs[1] = 1
    with pytest.raises(AssertionError):
        leaked.check_integrity()
    confused = BlockPool(3, 1)
    confused._cached[b"x"] = 1
    with pytest.raises(AssertionError):
        confused.check_integrity()


def test_tenants_and_prefixes_never_share_a_hash():
    tokens = [1, 2, 3, 4]
    assert len(root_hash(b"a")) == 16
    assert block_hash(root_hash(b"a"), tokens) != block_hash(root_hash(b"b"), tokens)
    assert block_hash(root_hash(b""), [1, 2]) != block_hash(root_hash(b""), [2, 1])
    first = block_hash(root_hash(b""), [1, 2])
    assert block_hash(first, [1, 2]) != first


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    blocks=st.integers(1, 8),
    moves=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=60),
)
def test_any_history_keeps_the_pool_whole(blocks: int, moves: list[tuple[int, int]]):
    pool = BlockPool(blocks, 1)
    held: list[list[int]] = []
    for move, value in moves:
        if move == 0 and value <= pool.free:
            held.append(pool.allocate(value))
        elif move == 1 and held:
            pool.release(held.pop(value % len(held)))
        elif move == 2 and held:
            group = held[value % len(held)]
            for block, digest in zip(group, chain(list(range(len(group))), 1), strict=True):
                pool.register(block, digest)
        elif move == 3:
            found = pool.match(chain(list(range(value)), 1))
            pool.hold(found)
            held.append(found)
        pool.check_integrity()
        for block in range(blocks):
            assert pool.references(block) == sum(group.count(block) for group in held)
    for group in held:
        pool.release(group)
    pool.check_integrity()
    assert pool.free == blocks


def chain(tokens: list[int], size: int = 2) -> list[bytes]:
    hashes: list[bytes] = []
    parent = root_hash(b"")
    for start in range(0, len(tokens), size):
        parent = block_hash(parent, tokens[start : start + size])
        hashes.append(parent)
    return hashes
