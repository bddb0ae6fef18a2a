"""Reasoning markers: single tokens that open and close a model's thinking."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cortex.text.tokenizer import Tokenizer

# Opener and closer as the vocabularies spell them; the first pair that a vocabulary has is taken.
PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
)


@attrs.frozen
class ReasoningMarkers:
    """The token ids of a model's opener and closer."""

    open: int
    close: int

    def left_open(self, prompt: Sequence[int]) -> bool:
        """Say whether *prompt* (ids) ends within thinking: the template opened it for the model."""
        for token in reversed(prompt):
            if token == self.open:
                return True
            if token == self.close:
                return False
        return False


def find_markers(tokenizer: Tokenizer) -> ReasoningMarkers | None:
    """The markers of the model that *tokenizer* belongs to; None where it does not reason."""
    for opener, closer in PAIRS:
        ids = tokenizer.token_id(opener), tokenizer.token_id(closer)
        if ids[0] is not None and ids[1] is not None:
            return ReasoningMarkers(ids[0], ids[1])
    return None
