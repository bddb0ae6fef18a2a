"""KV blocks: who holds which, what they contain, and which is given away next. No torch.

Every block is either held (reference count above 0) or on the free list. A full block whose
contents are known carries a hash of its whole prefix; it keeps it on the free list, which is what
makes the free list the prefix cache, in least-recently-used order. Blocks without a hash are worth
nothing and are given away first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

HASH_BYTES = 16  # 128 bits: tenants cannot find each other's blocks by collision
_NIL = -1


def root_hash(salt: bytes) -> bytes:
    """The parent of a first block, for the tenant named by *salt*."""
    return hashlib.blake2b(salt, digest_size=HASH_BYTES, person=b"cortex-kv-root").digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block with *tokens*, which follows the block hashed *parent*."""
    data = parent + array("q", tokens).tobytes()
    return hashlib.blake2b(data, digest_size=HASH_BYTES, person=b"cortex-kv-blk").digest()


class BlockPool:
    """``blocks`` numbered KV blocks of ``block_size`` tokens, with reference counts."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError("a block pool needs at least one block of at least one token")
        self.blocks = blocks
        self.block_size = block_size
        self.free = blocks
        self._refs = [0] * blocks
        self._hash: list[bytes | None] = [None] * blocks
        self._cached: dict[bytes, int] = {}
        # A doubly linked ring through a sentinel numbered `blocks`: head is given away next.
        self._next = [(i + 1) % (blocks + 1) for i in range(blocks + 1)]
        self._prev = [(i - 1) % (blocks + 1) for i in range(blocks + 1)]

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.blocks - self.free

    @property
    def cached(self) -> int:
        """Blocks that a prefix can be found in, held or free."""
        return len(self._cached)

    def references(self, block: int) -> int:
        return self._refs[block]

    def needed(self, tokens: int) -> int:
        """Blocks that hold *tokens* tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """*count* blocks with unknown contents, held once by the caller.

        Raises ValueError when fewer are free; nothing is taken then.
        """
        if count > self.free:
            raise ValueError(f"{count} blocks asked, {self.free} free")
        taken: list[int] = []
        for _ in range(count):
            block = self._next[self.blocks]
            self._unlink(block)
            self.forget(block)
            self._refs[block] = 1
            taken.append(block)
        self.free -= count
        # They were freed tail first: in order they are often neighbours, which need no gather.
        return sorted(taken)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The cached blocks of the longest known prefix of *hashes*; nothing is held by this."""
        found: list[int] = []
        for digest in hashes:
            block = self._cached.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of *blocks* nobody holds: what holding them takes from the free list."""
        return sum(1 for block in blocks if not self._refs[block])

    def hold(self, blocks: Iterable[int]) -> None:
        """One more reference to each of *blocks*, which keep their contents."""
        for block in blocks:
            if self._refs[block] == 0:
                self._unlink(block)
                self.free -= 1
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each of *blocks*, a sequence's in order.

        They go to the free list tail first, so that suffixes are given away before prefixes.
        """
        for block in reversed(blocks):
            if self._refs[block] < 1:
                raise ValueError(f"block {block} is released more often than it was held")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self.free += 1
                if self._hash[block] is None:
                    self._link_after(self.blocks, block)
                else:
                    self._link_after(self._prev[self.blocks], block)

    def register(self, block: int, digest: bytes) -> None:
        """A held block is full, and its contents are those of *digest*.

        When another block already has them, that one stays the cached one.
        """
        if digest not in self._cached and self._hash[block] is None:
            self._hash[block] = digest
            self._cached[digest] = block

    def forget(self, block: int) -> None:
        """The block's contents are not to be found any more."""
        digest = self._hash[block]
        if digest is not None:
            self._hash[block] = None
            del self._cached[digest]

    def check_integrity(self) -> None:
        """Raise AssertionError unless links, counts and cache agree. Linear in the pool."""
        seen: list[int] = []
        block = self._next[self.blocks]
        while block != self.blocks:
            assert len(seen) < self.blocks, "the free list has a loop"
            assert self._prev[self._next[block]] == block, "the free list is torn"
            assert self._refs[block] == 0, "a held block is on the free list"
            seen.append(block)
            block = self._next[block]
        assert len(set(seen)) == len(seen) == self.free, "the free count is wrong"
        assert sum(1 for refs in self._refs if refs == 0) == self.free, "a block leaked"
        assert all(refs >= 0 for refs in self._refs), "a reference count is negative"
        hashed = {digest: i for i, digest in enumerate(self._hash) if digest is not None}
        assert hashed == self._cached, "the prefix cache and the blocks disagree"

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before
        self._next[block] = self._prev[block] = _NIL

    def _link_after(self, where: int, block: int) -> None:
        after = self._next[where]
        self._next[where], self._prev[after] = block, block
        self._prev[block], self._next[block] = where, after
