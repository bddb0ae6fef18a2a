"""The one pipeline from generated tokens to what a client is told, for streams and whole answers.

    token -> reasoning markers (by id) -> whole characters -> reasoning
                                                           -> tool calls -> stop strings -> content

Stop strings apply to content: neither to reasoning nor inside a tool call.

Logprobs: the entry of a token belongs to the list that `OutputParser.feed` returned for that token,
even when the list is empty because its text is held back; a caller collects entries and attaches
them to the next content delta, so that none is lost and none is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from cortex.text.detokenizer import Detokenizer
from cortex.text.reasoning import ReasoningMarkers
from cortex.text.stop import StopMatcher
from cortex.text.tokenizer import Tokenizer
from cortex.text.tools.formats import ToolFormat
from cortex.text.tools.offer import Offer
from cortex.text.tools.parser import Part, TextPart, ToolCallParser


@attrs.frozen
class ContentDelta:
    """More of the answer."""

    text: str


@attrs.frozen
class ReasoningDelta:
    """More of the thinking."""

    text: str


@attrs.frozen
class ToolCallDelta:
    """More of call number ``index``: id and name come with its first delta, arguments (raw JSON)
    add up."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


class OutputParser:
    """The deltas of one generation.

    ``reasoning``: the model's markers, None to take them for text; ``in_reasoning``: the prompt
    ends within thinking (`ReasoningMarkers.left_open`). ``tools``: the model's format where the
    request has tools and allows calls, else None; ``offer``: those tools. ``parallel``: more than
    one call may be told, else nothing is after the first. ``continues``: the generation carries on
    a text, see `Detokenizer`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stops: Sequence[str] = (),
        reasoning: ReasoningMarkers | None = None,
        in_reasoning: bool = False,
        tools: ToolFormat | None = None,
        offer: Offer | None = None,
        parallel: bool = True,
        call_id: Callable[[], str] | None = None,
        continues: bool = False,
        skip_special: bool = True,
    ) -> None:
        signs = tools.markers if tools else ()
        ids = frozenset(i for i in map(tokenizer.token_id, signs) if i is not None)
        if reasoning is not None:  # seen as text only where a call's arguments hold them
            ids |= {reasoning.open, reasoning.close}
        self._detokenizer = Detokenizer(tokenizer, skip_special, continues=continues, visible=ids)
        self._markers = reasoning
        self._thinking = in_reasoning and reasoning is not None
        self._tools: ToolCallParser | None = None
        if tools is not None:
            self._tools = ToolCallParser(
                tools, offer or Offer(), call_id, begins=not continues, parallel=parallel
            )
        self._stops = StopMatcher(stops)
        # A stop string of newlines is to be seen when it comes, not with the next word.
        self._holds_space = not any(stop and stop[-1].isspace() for stop in stops)
        self._skip_newlines = self._thinking  # the newlines that stand around markers
        self._held = ""  # whitespace that a closer or a tool call would make superfluous
        self.reasoning_tokens = 0  # tokens of thinking, its markers included
        self.content_tokens = 0

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the answer: nothing more is told, generating on is waste."""
        return self._stops.matched

    @property
    def thinking(self) -> bool:
        """Thinking is under way."""
        return self._thinking

    @property
    def tool_calls(self) -> int:
        """Calls begun so far."""
        return self._tools.calls if self._tools else 0

    @property
    def ended(self) -> bool:
        """Nothing more is told, whatever comes: a stop string was found, or the one call is
        complete."""
        return self.matched_stop is not None or (self._tools is not None and self._tools.ended)

    def feed(self, *tokens: int) -> list[Delta]:
        """What *tokens* settle. An id that ended the generation (EOS) is not to be fed."""
        deltas: list[Delta] = []
        for token in tokens:
            if self.ended:
                break
            deltas += self._feed(token)
        return deltas

    def close_thinking(self, *tokens: int) -> list[Delta]:
        """What *tokens* settle, which end thinking though the model did not write them: all of
        them count as thinking."""
        thought, told = self.reasoning_tokens, self.content_tokens
        deltas = self.feed(*tokens)
        self.reasoning_tokens, self.content_tokens = thought + len(tokens), told
        return deltas

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """What was held back, when no more tokens come. ``cut``: not because the model was at its
        end, so that a call under way is not closed on its behalf."""
        if self.ended:
            return []
        deltas = self._text(self._detokenizer.flush())
        if self._thinking:
            held, self._held = self._held, ""
            return deltas + ([ReasoningDelta(held)] if held else [])
        if self._tools is not None:
            deltas += self._parts(self._tools.finish(cut=cut))
        if not self.tool_calls:
            deltas += self._content(self._held)
        self._held = ""
        return deltas + self._flush_stops()

    def _feed(self, token: int) -> list[Delta]:
        markers = self._markers
        in_call = self._tools is not None and self._tools.in_call
        if markers is not None and not in_call and token in (markers.open, markers.close):
            self.reasoning_tokens += 1
            return self._marker(opens=token == markers.open)
        if self._thinking:
            self.reasoning_tokens += 1
        else:
            self.content_tokens += 1
        text = self._detokenizer.feed(token)
        return self._text(text) if text else []

    def _marker(self, *, opens: bool) -> list[Delta]:
        deltas = self._text(self._detokenizer.flush())
        if not self._thinking and opens:
            if self._tools is not None:
                deltas += self._parts(self._tools.finish())
            deltas += self._content(self._held) + self._flush_stops()
        if opens or self._thinking:  # a closer with nothing to close is left out, no more
            self._skip_newlines, self._held = True, ""
        self._thinking = opens
        return deltas

    def _text(self, text: str) -> list[Delta]:
        if self._skip_newlines:
            text = text.lstrip("\r\n")
            self._skip_newlines = not text
        if not text:
            return []
        if self._thinking:
            text = self._hold_back(text, "\r\n")
            return [ReasoningDelta(text)] if text else []
        if self._tools is None:
            return self._content(text)
        return self._parts(self._tools.feed(text))

    def _parts(self, parts: Iterable[Part]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if isinstance(part, TextPart):
                text = self._hold_back(part.text, " \t\r\n") if self._holds_space else part.text
                deltas += self._content(text)
                continue
            self._held = ""
            if self._stops.matched is None:
                deltas += self._flush_stops()
            if self._stops.matched is not None:
                return deltas
            deltas.append(ToolCallDelta(part.index, part.id, part.name, part.arguments))
        return deltas

    def _hold_back(self, text: str, space: str) -> str:
        """*text* after what was held, short of the whitespace at its end, which is held now."""
        text = self._held + text
        kept = text.rstrip(space)
        self._held = text[len(kept) :]
        return kept

    def _content(self, text: str) -> list[Delta]:
        safe = self._stops.feed(text)[0] if text else ""
        return [ContentDelta(safe)] if safe else []

    def _flush_stops(self) -> list[Delta]:
        safe = self._stops.flush()
        return [ContentDelta(safe)] if safe else []
