"""Filling a gap in a text (FIM): the control tokens a model was taught it with, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cortex.text.tokenizer import Tokenizer


@attrs.frozen
class _Spelling:
    """Before what precedes the gap, before what follows it, and after both ("" for nothing)."""

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False


# As the models' cards have them; the first whose tokens a vocabulary has is taken.
SPELLINGS = (
    _Spelling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    _Spelling("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    _Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Spelling("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Spelling("<PRE>", "<SUF>", "<MID>"),
    _Spelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    _Spelling("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)
# What a model writes where the gap is filled, or another file or gap would begin.
ENDS = (
    "<|endoftext|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|file_separator|>",
    "<fim_pad>",
    "<file_sep>",
    "▁<EOT>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
)


@attrs.frozen
class InfillFormat:
    """One model's control tokens, as ids. ``middle`` None: nothing stands after both texts.
    ``ends`` are all ids that end the filling."""

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool
    ends: frozenset[int]

    def prompt(self, tokenizer: Tokenizer, before: str | Sequence[int], after: str) -> list[int]:
        """The ids that ask for what stands between *before* and *after*, with BOS where due.

        Both are text throughout: a control token written in them is the characters it is written
        with. *before* may be ids, which are taken as they are.
        """
        if isinstance(before, str):
            before = tokenizer.encode(before, special=False)
            before = [i for i in before if i not in tokenizer.control_ids]
        head = [self.prefix, *before]
        tail = [self.suffix, *(tokenizer.encode_plain(after) if after else ())]
        ids = tail + head if self.suffix_first else head + tail
        if self.middle is not None:
            ids.append(self.middle)
        if tokenizer.adds_bos and tokenizer.bos_id is not None:
            ids.insert(0, tokenizer.bos_id)
        return ids


def find_infill(tokenizer: Tokenizer) -> InfillFormat | None:
    """The format of the model that *tokenizer* belongs to; None where it was not taught any."""
    control = tokenizer.control  # what text cannot spell; any other token would be forged
    for spelling in SPELLINGS:
        signs = [spelling.prefix, spelling.suffix, *filter(None, [spelling.middle])]
        if all(sign in control for sign in signs):
            ids = [control[sign] for sign in signs]
            return InfillFormat(
                prefix=ids[0],
                suffix=ids[1],
                middle=ids[2] if spelling.middle else None,
                suffix_first=spelling.suffix_first,
                ends=frozenset(ids) | {control[end] for end in ENDS if end in control},
            )
    return None
