"""A request while the engine works on it. No torch."""

from __future__ import annotations

import enum

import attrs

from cortex.engine.blocks import block_hash, root_hash
from cortex.engine.pooling import RunningPool
from cortex.engine.request import FinishReason, Pooling, Request, TokenLogprob


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@attrs.define(eq=False)
class Sequence:
    """Tokens so far, how many of them have valid KV, and the blocks that hold it.

    ``pending`` tokens more were drawn by steps whose results are not known to the host yet; the
    device knows them. ``registered`` of the blocks can be found by others.

    ``row`` is the sequence's line in the batch's block tables while it runs. ``limit`` is the
    length in tokens at which it ends. ``seed`` is never None: the engine fills it in.
    """

    request: Request
    seed: int
    limit: int
    arrival: int
    tokens: list[int] = attrs.field(init=False)
    status: Status = Status.WAITING
    pending: int = 0
    computed: int = 0
    registered: int = 0
    blocks: list[int] = attrs.field(factory=list)
    row: int = -1
    cached_tokens: int | None = None
    scheduled_at: float | None = None
    prompt_logprobs: list[TokenLogprob | None] = attrs.field(factory=list)
    pool: RunningPool = attrs.field(factory=RunningPool)
    preemptions: int = 0
    _hashes: list[bytes] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens so far, the pending ones included: the position of the next to be drawn."""
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> int:
        """Tokens of the completion that are known."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens without valid KV; 1 in decode."""
        return self.length - self.computed

    @property
    def awaits_end(self) -> bool:
        """Whether its last token is pending: nothing of it is left to compute."""
        return self.pending > 0 and self.length >= self.limit

    @property
    def needs_tokens(self) -> bool:
        """Whether a step of it can be built only once every token before is known to the host."""
        sampling = self.request.sampling
        return sampling.penalised or sampling.prompt_logprobs or self.request.constraint is not None

    @property
    def needs_every_position(self) -> bool:
        """Whether each token of the prompt must be computed, so that no cached block helps."""
        request = self.request
        wants = request.sampling.prompt_logprobs or request.pooling is Pooling.MEAN
        return wants and self.generated == 0

    def block_digest(self, index: int, block_size: int) -> bytes:
        """The hash of full block *index*; kept, since tokens never change."""
        while len(self._hashes) <= index:
            parent = self._hashes[-1] if self._hashes else root_hash(self.request.salt)
            start = len(self._hashes) * block_size
            self._hashes.append(block_hash(parent, self.tokens[start : start + block_size]))
        return self._hashes[index]

    def append(self, token: int) -> FinishReason | None:
        """Take the drawn *token*; the reason when the sequence ends with it."""
        self.tokens.append(token)
        self.pending = max(self.pending - 1, 0)
        request = self.request
        stops = not request.ignore_eos and self.generated >= request.min_tokens
        if request.constraint is not None:
            stops = True
            if request.constraint.ended:
                return FinishReason.STOP
        if stops and token in request.stop_ids:
            return FinishReason.STOP
        if len(self.tokens) >= self.limit:
            return FinishReason.LENGTH
        return None
