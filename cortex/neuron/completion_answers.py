"""Bodies and chunks of the legacy completions route. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cortex.engine.request import TokenLogprob
from cortex.neuron.chat_answers import finite
from cortex.neuron.generation import Completion, Update
from cortex.text.deltas import ContentDelta
from cortex.text.detokenizer import Detokenizer
from cortex.text.tokenizer import Tokenizer
from cortex.wire import json, sse
from cortex.wire.neuron import Timings


@attrs.define(eq=False)
class TokenTable:
    """``logprobs`` of the completions route: four parallel lists, offsets in characters of the
    text. A token that is but a part of a character begins where the character does; one that the
    text leaves out (BOS of an echoed prompt) takes no room. ``echo``: the prompt comes first."""

    tokenizer: Tokenizer
    wanted: int | None
    echo: bool = False
    offset: int = 0
    _detokenizer: Detokenizer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, continues=not self.echo)

    def rows(self, entries: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, Any] | None:
        """The lists for *entries*; None when the request wants no logprobs. A token without a
        logprob (the first one of an echoed prompt) has null."""
        if self.wanted is None:
            return None
        table: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token, entry in entries:
            text = self._text(token)
            table["tokens"].append(text)
            table["text_offset"].append(self.offset)
            table["token_logprobs"].append(None if entry is None else finite(entry.logprob))
            table["top_logprobs"].append(None if entry is None else self._top(entry))
            self.offset += len(self._detokenizer.feed(token))
        return table

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        best = entry.top[: self.wanted or 0]
        return {self._text(token): finite(logprob) for token, logprob in best}

    def _text(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")


@attrs.define(eq=False)
class CompletionText:
    """One choice as it grows: its text and its table of logprobs."""

    index: int
    prompt: tuple[int, ...]
    table: TokenTable
    echo: str | None
    parts: list[str] = attrs.field(factory=list)
    entries: list[tuple[int, TokenLogprob | None]] = attrs.field(factory=list)

    def take(self, update: Update) -> str:
        """The text *update* adds, with the echoed prompt in front of the first."""
        text = "".join(d.text for d in update.deltas if isinstance(d, ContentDelta))
        if update.first is not None and self.echo is not None:
            text = self.echo + text
            prompt_logprobs = update.first.prompt_logprobs
            if prompt_logprobs is not None:
                self.entries += zip(self.prompt, prompt_logprobs, strict=True)
            else:
                self.table.offset += len(self.echo)
        self.entries += ((entry.token, entry) for entry in update.logprobs)
        self.parts.append(text)
        return text

    def choice(self, text: str, completion: Completion | None) -> dict[str, Any]:
        """A choice object with *text* and the logprobs that came since the last one."""
        table, self.entries = self.table.rows(self.entries), []
        body: dict[str, Any] = {
            "index": self.index,
            "text": text,
            "logprobs": table,
            "finish_reason": None if completion is None else completion.finish,
        }
        if completion is not None:
            body["stop_reason"] = completion.parser.matched_stop
        return body


@attrs.frozen(eq=False)
class CompletionShape:
    """What all chunks of one answer share."""

    id: str
    model: str
    created: int
    include_usage: bool = False

    def body(
        self, choices: Sequence[dict[str, Any]], usage: dict[str, object], timings: Timings
    ) -> dict[str, Any]:
        return {**self._base(choices), "usage": usage, "timings": attrs.asdict(timings)}

    def chunk(self, choice: dict[str, Any], timings: Timings | None = None) -> bytes:
        body = self._base([choice])
        if self.include_usage:
            body["usage"] = None
        if timings is not None:
            body["timings"] = attrs.asdict(timings)
        return sse.data_frame(json.dumps(body))

    def end(self, usage: dict[str, object]) -> bytes:
        frames = b""
        if self.include_usage:
            frames = sse.data_frame(json.dumps({**self._base([]), "usage": usage}))
        return frames + sse.DONE

    def _base(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
