"""A device's memory, by model and by row: who may take how much. Bytes throughout.

Every consumer has its rows here (``weights``, ``kv``, ``workspace``, ``graphs``). A load reserves
what was estimated, settles what was measured, and an unload releases it.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from cortex.errors import DeviceOutOfMemory

MIB = 1 << 20
# Sequences of full length that a KV budget has room for at most. On a GPU more than that is of no
# use to a batch of the default size; on a CPU a batch is small, and memory is others' too.
FULL_LENGTH_SEQUENCES = {"cpu": 4, "cuda": 32}
# A model whose cache holds fewer tokens than this serves no conversation, so it is not loaded.
LEAST_CONTEXT = 4096
BLOCK_SLACK = 192  # tokens: a sequence's last block may be empty but one, and two are spare
CPU_KV_SHARE = 0.25  # of the device's budget: a tiny model must not take tens of gigabytes of RAM
CUDA_KV_SHARE = 0.5  # of what remains, so that a second model finds room beside the first


def mib(size: float) -> int:
    """Bytes as MiB, rounded up."""
    return -int(-size // MIB)


def kv_budget(
    *,
    kind: str,
    total: int,
    remaining: int,
    bytes_per_token: int,
    context: int,
    explicit_context: bool,
) -> int:
    """How many bytes of KV cache a new model gets.

    Enough for `FULL_LENGTH_SEQUENCES` of its context, but no more than a share: on a CPU
    `CPU_KV_SHARE` of the device's budget, on a GPU `CUDA_KV_SHARE` of what remains once weights and
    workspace are in. The share gives way to one sequence of full length, and nothing goes beyond
    what *remaining* allows. Raises `DeviceOutOfMemory` when not even one sequence fits: of the
    asked-for length when it was asked for, of `LEAST_CONTEXT` otherwise.
    """
    one = bytes_per_token * (context + BLOCK_SLACK)
    share = total * CPU_KV_SHARE if kind == "cpu" else remaining * CUDA_KV_SHARE
    budget = min(one * FULL_LENGTH_SEQUENCES[kind], max(int(share), one), max(remaining, 0))
    tokens = context if explicit_context else min(context, LEAST_CONTEXT)
    least = bytes_per_token * (tokens + BLOCK_SLACK)
    if budget < least:
        raise DeviceOutOfMemory(
            f"no room for {tokens} tokens of KV cache: {mib(least)} MiB needed,"
            f" {mib(max(remaining, 0))} MiB free beside the weights",
            extras={"required_mb": mib(least), "free_mb": mib(max(remaining, 0))},
        )
    return budget


@attrs.define(eq=False)
class Reservation:
    """A model's rows in a ledger. Released once, however often it is asked for.

    As a context manager it lasts on when the block succeeds, and is released when the block fails
    or is cancelled.
    """

    _ledger: Ledger
    model_id: str

    def settle(self, rows: Mapping[str, int]) -> None:
        """Replace the estimate by what was measured."""
        self._ledger.settle(self.model_id, rows)

    def release(self) -> None:
        self._ledger.release(self.model_id, self)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.release()


@attrs.define(eq=False)
class Ledger:
    """The memory of one device: *total* bytes may be given out."""

    device: int
    total: int
    _rows: dict[str, dict[str, int]] = attrs.field(factory=dict, init=False)
    _estimates: dict[str, dict[str, int]] = attrs.field(factory=dict, init=False)
    _owners: dict[str, Reservation] = attrs.field(factory=dict, init=False)
    _unsettled: set[str] = attrs.field(factory=set, init=False)

    @property
    def used(self) -> int:
        return sum(sum(rows.values()) for rows in self._rows.values())

    @property
    def free(self) -> int:
        return self.total - self.used

    @property
    def promised(self) -> int:
        """Reserved for loads under way: not to be seen in the device's own figures yet."""
        return sum(sum(self._rows[model_id].values()) for model_id in self._unsettled)

    def available(self, device_free: int | None) -> int:
        """What a new model may take, given what the device itself says is free (None: unknown)."""
        if device_free is None:
            return max(self.free, 0)
        return max(min(self.free, device_free - self.promised), 0)

    def rows(self) -> dict[str, dict[str, int]]:
        """A copy: model id -> row -> bytes."""
        return {model_id: dict(rows) for model_id, rows in self._rows.items()}

    def estimates(self) -> dict[str, dict[str, int]]:
        """A copy: what the rows of each model were reserved as, before they were settled."""
        return {model_id: dict(rows) for model_id, rows in self._estimates.items()}

    def used_by(self, model_id: str) -> int | None:
        rows = self._rows.get(model_id)
        return None if rows is None else sum(rows.values())

    def reserve(
        self, model_id: str, rows: Mapping[str, int], *, device_free: int | None = None
    ) -> Reservation:
        """Set *rows* aside for *model_id*, or raise `DeviceOutOfMemory` with the numbers."""
        if model_id in self._rows:
            raise ValueError(f"{model_id} has rows on device {self.device} already")
        required, available = sum(rows.values()), self.available(device_free)
        if required > available:
            raise DeviceOutOfMemory(
                f"{model_id} needs {mib(required)} MiB on device {self.device},"
                f" {available // MIB} MiB are free",
                extras={"required_mb": mib(required), "free_mb": available // MIB},
            )
        reservation = Reservation(self, model_id)
        self._rows[model_id] = dict(rows)
        self._estimates[model_id] = dict(rows)
        self._owners[model_id] = reservation
        self._unsettled.add(model_id)
        return reservation

    def settle(self, model_id: str, rows: Mapping[str, int]) -> None:
        if model_id not in self._rows:
            raise KeyError(model_id)
        self._rows[model_id] = dict(rows)
        self._unsettled.discard(model_id)

    def release(self, model_id: str, owner: Reservation) -> None:
        if self._owners.get(model_id) is owner:  # a later load of the same id keeps its rows
            del self._owners[model_id], self._rows[model_id], self._estimates[model_id]
            self._unsettled.discard(model_id)
