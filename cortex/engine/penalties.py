"""Repetition, presence and frequency penalties, and the token counts they need."""

from __future__ import annotations

from collections.abc import Sequence as Items

import attrs
import torch

from cortex.engine.sequence import Sequence


@attrs.define(eq=False)
class _Counts:
    """Over the vocabulary: what occurred at all, and how often in the completion."""

    occurred: torch.Tensor  # bool
    completion: torch.Tensor  # fp32
    length: int = 0  # tokens counted


class Penalties:
    """Counts for the sequences that ask for penalties, kept on the device from step to step."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._counts: dict[Sequence, _Counts] = {}

    def forget(self, sequence: Sequence) -> None:
        self._counts.pop(sequence, None)

    def apply(self, logits: torch.Tensor, sequences: Items[Sequence]) -> torch.Tensor:
        """Penalised ``(rows, vocabulary)`` logits.

        Repetition divides what is positive and multiplies what is negative of every token that
        occurred; presence and frequency subtract by the counts of the completion.
        """
        counts = [self._counted(sequence) for sequence in sequences]
        occurred = torch.stack([c.occurred for c in counts])
        completion = torch.stack([c.completion for c in counts])
        params = [sequence.request.sampling for sequence in sequences]
        repetition = self._column([p.repetition_penalty for p in params])
        presence = self._column([p.presence_penalty for p in params])
        frequency = self._column([p.frequency_penalty for p in params])
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(occurred, repeated, logits)
        return logits - presence * (completion > 0) - frequency * completion

    def _counted(self, sequence: Sequence) -> _Counts:
        counts = self._counts.get(sequence)
        if counts is None:
            counts = self._counts[sequence] = _Counts(
                torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device),
                torch.zeros(self._vocab_size, dtype=torch.float32, device=self._device),
            )
        prompt = len(sequence.request.prompt) - sequence.request.resumed
        fresh = sequence.tokens[counts.length :]
        if fresh:
            tokens = torch.tensor(fresh, dtype=torch.int64).to(self._device)
            counts.occurred.index_fill_(0, tokens, True)
            completed = tokens[max(prompt - counts.length, 0) :]
            ones = torch.ones(len(completed), device=self._device)
            counts.completion.index_add_(0, completed, ones)
            counts.length = len(sequence.tokens)
        return counts

    def _column(self, values: Items[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._device)[:, None]
