"""Grammars for models that think first: they hold for what follows the thinking."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from cortex.text.reasoning import ReasoningMarkers
from cortex.text.tokenizer import Tokenizer

Words = npt.NDArray[np.int32]

# Tokens of nothing but line breaks that may stand between the closer and the answer: models are
# trained to write one of two breaks, and the answer is told without them.
BREAKS = 2


class Phase(enum.Enum):
    """Where a completion stands."""

    BEFORE = "before"  # nothing was generated: the opener may come, or the answer
    THINKING = "thinking"
    CLOSED = "closed"  # the closer was the last but for line breaks
    ANSWER = "answer"


class Answers(Protocol):
    """The constraint of the answer (`Matcher`)."""

    @property
    def ended(self) -> bool: ...

    def fill_mask(self, row: Words) -> None: ...

    def accept(self, token: int) -> None: ...


@attrs.frozen(eq=False)
class ThinkingTokens:
    """What of a vocabulary of ``size`` ids matters here: the markers, the tokens of line breaks,
    and the ids that end a generation, which may not come within thinking."""

    size: int
    markers: ReasoningMarkers
    breaks: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, markers: ReasoningMarkers, eos_ids: Iterable[int]
    ) -> ThinkingTokens:
        size = tokenizer.id_limit
        spelled = ("\n", "\n\n", "\r\n", "\r\n\r\n")
        breaks = [tokenizer.encode_plain(text) for text in spelled]
        single = frozenset(ids[0] for ids in breaks if len(ids) == 1)
        ends = frozenset(i for i in eos_ids if i < size)
        return cls(size, markers, single, ends)

    def phase_after(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> Phase:
        """Where a completion of *prompt*, which does not end within thinking, begins.

        One that ends with a closed block, which is how templates say that there is to be none, is
        followed by the answer. After any other the model may open a block first.
        """
        for token in reversed(prompt):
            if token == self.markers.close:
                return Phase.ANSWER
            if tokenizer.token_bytes(token).strip():
                break
        return Phase.BEFORE


class AfterThinking:
    """A constraint that leaves thinking free and holds the answer to *answers*.

    Thinking can come once, first. While it lasts any token of the vocabulary may come but those
    that end the generation: an answer is still due.
    """

    def __init__(self, answers: Answers, tokens: ThinkingTokens, phase: Phase) -> None:
        self._answers = answers
        self._tokens = tokens
        self.phase = phase
        self._breaks = 0

    @property
    def ended(self) -> bool:
        return self.phase is not Phase.THINKING and self._answers.ended

    def fill_mask(self, row: Words) -> None:
        tokens = self._tokens
        if self.phase is Phase.THINKING:
            used = tokens.size // 32
            row[:used] = -1
            row[used:] = 0
            for token in (*range(used * 32, tokens.size), *tokens.ends):
                _write(row, token, token not in tokens.ends)
            return
        self._answers.fill_mask(row)
        if self.phase is Phase.BEFORE:
            _write(row, tokens.markers.open, True)
        elif self.phase is Phase.CLOSED and self._breaks < BREAKS:
            for token in tokens.breaks:
                _write(row, token, True)

    def accept(self, token: int) -> None:
        tokens = self._tokens
        if self.phase is Phase.THINKING:
            if token == tokens.markers.close:
                self.phase = Phase.CLOSED
        elif self.phase is Phase.BEFORE and token == tokens.markers.open:
            self.phase = Phase.THINKING
        elif self.phase is Phase.CLOSED and token in tokens.breaks and self._breaks < BREAKS:
            self._breaks += 1
        else:
            self.phase = Phase.ANSWER
            self._answers.accept(token)


def _write(row: Words, token: int, allowed: bool) -> None:
    """Set or clear the bit of *token*, where *row* reaches that far."""
    if token < 32 * len(row):
        word = int(row[token // 32]) & 0xFFFFFFFF
        bit = 1 << token % 32
        word = word | bit if allowed else word & ~bit
        row[token // 32] = word - (1 << 32) if word >> 31 else word
