"""From logits to tokens, on the device, without a word to the host.

A token is drawn by inverting the distribution's cumulative sum at one uniform number, which is a
hash of the request's seed and the position: a request draws the same whatever runs beside it.
Cuts (top-k, top-p, min-p) are thresholds on the logits, ties kept, for the same reason: which of
two equal logits a sort puts first depends on the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as Items

import torch

from cortex.engine.kernels.torch_draw import GREEDY_BELOW, invert
from cortex.engine.masks import Mask
from cortex.engine.penalties import Penalties
from cortex.engine.sequence import Sequence

CANDIDATES = 1024  # sorted first on a CPU; nuclei are rarely larger


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a function of *seed* and *position* alone."""
    data = (seed % (1 << 64)).to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=8, person=b"cortex-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def is_plain(sequence: Sequence) -> bool:
    """Whether temperature and cuts say all there is to its next draw (`Ops.draw`)."""
    request = sequence.request
    sampling = request.sampling
    drawn = sequence.length - len(request.prompt)
    return not (
        sampling.penalised
        or sampling.logit_bias
        or (drawn < request.min_tokens and not request.ignore_eos)
        or request.constraint is not None
    )


class Sampler:
    """Draws for the sequences of a step. Keeps the token counts that penalties need."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._penalties = Penalties(vocab_size, device)

    def forget(self, sequence: Sequence) -> None:
        """The sequence is over."""
        self._penalties.forget(sequence)

    def draw(
        self, logits: torch.Tensor, sequences: Items[Sequence], mask: Mask | None = None
    ) -> torch.Tensor:
        """One token a row: ``(rows, vocabulary)`` fp32 logits to ``(rows,)`` int64 ids.

        *mask* is that of the constrained among *sequences*: what it forbids is not drawn whatever
        else is asked for. *logits* are left as they are.
        """
        logits = self._adjusted(logits, sequences, mask)
        warm = [
            i
            for i, sequence in enumerate(sequences)
            if sequence.request.sampling.temperature >= GREEDY_BELOW
        ]
        if not warm:
            return logits.argmax(-1)
        if len(warm) == len(sequences):
            return self._random(logits, sequences)
        tokens = logits.argmax(-1)
        rows = self._ints(warm)
        drawn = self._random(logits.index_select(0, rows), [sequences[i] for i in warm])
        return tokens.index_copy_(0, rows, drawn)

    def _adjusted(
        self, logits: torch.Tensor, sequences: Items[Sequence], mask: Mask | None
    ) -> torch.Tensor:
        """The mask (-inf stays that under what follows), penalties, then bias, then stop ids
        forbidden until ``min_tokens`` where no constraint decides on them."""
        penalised = [i for i, s in enumerate(sequences) if s.request.sampling.penalised]
        places: list[tuple[int, int]] = []
        values: list[float] = []
        for row, sequence in enumerate(sequences):
            request = sequence.request
            for token, bias in request.sampling.logit_bias:
                places.append((row, token))
                values.append(bias)
            drawn = sequence.length - len(request.prompt)
            held = request.constraint is None and not request.ignore_eos
            if held and drawn < request.min_tokens:
                places += [(row, token) for token in request.stop_ids if token < logits.shape[1]]
                values += [-math.inf] * (len(places) - len(values))
        if not penalised and not places and mask is None:
            return logits
        logits = logits.clone()
        if mask is not None:
            mask.apply(logits)
        if penalised:
            rows = self._ints(penalised)
            chosen = [sequences[i] for i in penalised]
            logits.index_copy_(0, rows, self._penalties.apply(logits.index_select(0, rows), chosen))
        if places:
            where = self._ints(places)
            logits.index_put_((where[:, 0], where[:, 1]), self._floats(values), accumulate=True)
        return logits

    def _random(self, logits: torch.Tensor, sequences: Items[Sequence]) -> torch.Tensor:
        params = [sequence.request.sampling for sequence in sequences]
        scaled = logits / self._floats([p.temperature for p in params])[:, None]
        best = scaled.amax(-1, keepdim=True)
        threshold = torch.full_like(best, -math.inf)
        if any(p.min_p > 0 for p in params):
            logs = [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]
            threshold = best + self._floats(logs)[:, None]
        cut = [i for i, p in enumerate(params) if 0 < p.top_k < self._vocab_size or p.top_p < 1]
        if cut:
            rows = self._ints(cut)
            floors = self._floors(
                scaled.index_select(0, rows),
                [params[i].top_k for i in cut],
                [params[i].top_p for i in cut],
            )
            threshold = threshold.index_copy(
                0, rows, torch.maximum(threshold.index_select(0, rows), floors)
            )
        # Zeroed by multiplication, which is five times as quick as a masked fill on a CPU.
        weights = (scaled - best).exp_().mul_(scaled >= threshold)
        numbers = [uniform(s.seed, s.length) for s in sequences]
        at = torch.tensor(numbers, dtype=torch.float64).to(self._device, non_blocking=True)
        return invert(weights, at)

    def _floors(self, scaled: torch.Tensor, top_k: Items[int], top_p: Items[float]) -> torch.Tensor:
        """``(rows, 1)``: the least logit that top-k, and top-p of what it left, keep."""
        size = scaled.shape[1]
        limits = [k if 0 < k < size else size for k in top_k]
        count = max(limits)
        if count > CANDIDATES and self._device.type == "cpu" and size > CANDIDATES:
            floors, enough = self._floors_among(scaled, limits, top_p, CANDIDATES)
            # On a CPU looking at a result costs nothing; a GPU sorts quickly instead.
            if enough.numpy().all():
                return floors
        return self._floors_among(scaled, limits, top_p, count)[0]

    def _floors_among(
        self, scaled: torch.Tensor, limits: Items[int], top_p: Items[float], count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The floors by the *count* best of each row, and whether these were enough."""
        best = scaled.topk(count, dim=-1).values
        size = scaled.shape[1]
        last = self._ints([min(k, count) - 1 for k in limits])[:, None]
        limited = torch.tensor([k < size for k in limits]).to(self._device)[:, None]
        floor = best.gather(1, last).masked_fill_(~limited, -math.inf)
        known = torch.tensor([k <= count for k in limits]).to(self._device)[:, None]
        top = best[:, :1]
        total = (scaled - top).exp_().mul_(scaled >= floor).sum(-1, keepdim=True)
        mass = (best - top).exp_().div_(total).cumsum(-1, dtype=torch.float64)
        share = torch.tensor(list(top_p), dtype=torch.float64).to(self._device)[:, None]
        # Kept are the best ones up to and with the first whose sum reaches the share.
        kept = (mass < share).sum(-1, keepdim=True)
        reached = kept < count
        nucleus = best.gather(1, kept.clamp(max=count - 1))
        nucleus = nucleus.masked_fill(share >= 1, -math.inf)
        return torch.maximum(floor, nucleus), (reached | (share >= 1)) & (known | ~limited)

    def _ints(self, values: Items[int] | Items[tuple[int, int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)

    def _floats(self, values: Items[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._device, non_blocking=True)
