"""Token ids to text as they come: whole characters only, linear in the number of tokens."""

from __future__ import annotations

import codecs

from cortex.text.tokenizer import Tokenizer
from cortex.text.vocabulary import FirstSpace


class Detokenizer:
    """One stream of tokens. What `feed` and `flush` return adds up to ``decode`` of all ids.

    ``continues``: the tokens carry on a text, so that the space a metaspace tokenizer writes before
    a first word belongs to it (raw completions). ``visible``: special tokens shown nevertheless.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special: bool = True,
        *,
        continues: bool = False,
        visible: frozenset[int] = frozenset(),
    ) -> None:
        self._bytes = tokenizer.token_bytes
        self._hidden = tokenizer.special_ids - visible if skip_special else frozenset[int]()
        self._first_space = FirstSpace.KEEP if continues else tokenizer.first_space
        # Bytes that are no UTF-8 become U+FFFD, those that may yet become a character are held.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The characters that *token* completes; often none."""
        if token in self._hidden:
            return ""
        spelled = self._bytes(token)
        if self._first_space is FirstSpace.DROP_IN_FIRST and spelled:
            spelled = spelled.replace(b" ", b"")
            self._first_space = FirstSpace.KEEP
        return self._without_first_space(self._utf8.decode(spelled))

    def flush(self) -> str:
        """What is held, bytes of an unfinished character as U+FFFD. The stream can go on."""
        held = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return self._without_first_space(held)

    def _without_first_space(self, text: str) -> str:
        if self._first_space is FirstSpace.DROP_ONE and text:
            self._first_space = FirstSpace.KEEP
            return text.removeprefix(" ")
        return text
