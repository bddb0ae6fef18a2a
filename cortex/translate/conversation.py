"""A conversation and what a model answers, in no dialect.

The superset of what the dialects can say: turns hold ordered blocks, answers are ordered events.
Every dialect is read into this and written from this; none is ever turned into another directly.
"""

from __future__ import annotations

import enum
from typing import Any

import attrs

from cortex.errors import CortexError
from cortex.wire.neuron import Timings

# What a turn holds.


@attrs.frozen
class Text:
    text: str


@attrs.frozen
class Image:
    """``url`` is a data URL: nothing here is ever fetched. ``path`` says where the client has put
    it, in its dialect's words."""

    url: str
    path: str = attrs.field(default="", eq=False)


@attrs.frozen
class Document:
    """A document or a search result as plain text. ``origin`` says where it is from."""

    text: str
    title: str | None = None
    context: str | None = None
    origin: str | None = None


@attrs.frozen
class Thinking:
    text: str


@attrs.frozen
class ToolUse:
    """A call the model made. ``arguments`` is JSON in the order of the model's keys: as the client
    sent it where that is text, else compact."""

    id: str
    name: str
    arguments: str


@attrs.frozen
class ToolResult:
    tool_use_id: str
    content: tuple[Text | Image | Document, ...] = ()
    is_error: bool = False


Block = Text | Image | Document | Thinking | ToolUse | ToolResult


class Role(enum.StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@attrs.frozen
class Turn:
    """One side's blocks in order. Two neighbouring turns never have the same role."""

    role: Role
    blocks: tuple[Block, ...]


# What comes with the turns.


@attrs.frozen
class Tool:
    name: str
    description: str | None
    parameters: dict[str, Any]
    strict: bool | None = None


class ToolMode(enum.StrEnum):
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"
    NONE = "none"


@attrs.frozen
class ToolChoice:
    """``name`` is the tool's when the mode is NAMED; ``parallel`` False allows one call a turn.

    ``allowed``, with the modes AUTO and REQUIRED: the only tools that may be called, None for all.
    """

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None
    parallel: bool | None = None
    allowed: tuple[str, ...] | None = None


@attrs.frozen
class Reasoning:
    """``enabled`` None leaves it to the model; ``shown`` False keeps the text from the client."""

    enabled: bool | None = None
    budget_tokens: int | None = None
    effort: str | None = None
    shown: bool = True


@attrs.frozen
class Sampling:
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


class Overflow(enum.StrEnum):
    """What to do when prompt and completion limit exceed the context together."""

    CLAMP = "clamp"
    ERROR = "error"


@attrs.frozen(kw_only=True)
class Conversation:
    """``model`` is the name that was asked for; ``max_tokens`` 0 fills the prompt cache only.

    ``continues``: an assistant's text at the end is the beginning of the answer.
    """

    model: str
    system: tuple[Text, ...] = ()
    turns: tuple[Turn, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    reasoning: Reasoning = Reasoning()
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    schema: dict[str, Any] | None = None  # of the JSON the answer has to be
    overflow: Overflow = Overflow.CLAMP
    continues: bool = True
    stream: bool = False
    user: str | None = None

    @property
    def prewarm(self) -> bool:
        """Whether no answer is wanted, only its prompt in the cache."""
        return self.max_tokens == 0


# What comes out. `Usage` may come several times, each replacing the last; `Finished` or `Failed`
# is the last event of an answer, and exactly one of them comes.


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@attrs.frozen
class Started:
    """The model has begun to answer."""


@attrs.frozen
class TextDelta:
    text: str


@attrs.frozen
class ThinkingDelta:
    text: str


@attrs.frozen
class ToolCallStart:
    """``index`` tells calls apart; ``id`` may be empty where upstream gave none."""

    index: int
    id: str
    name: str


@attrs.frozen
class ToolCallDelta:
    """A piece of the JSON text of a call's arguments."""

    index: int
    arguments: str


@attrs.frozen
class Usage:
    """Tokens. ``prompt_tokens`` include the cached, ``completion_tokens`` the reasoning ones."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int | None = None


@attrs.frozen
class Measured:
    timings: Timings


@attrs.frozen
class Finished:
    """``stop_sequence`` is the client's stop string that matched."""

    reason: FinishReason
    stop_sequence: str | None = None


@attrs.frozen
class Failed:
    error: CortexError


Event = (
    Started
    | TextDelta
    | ThinkingDelta
    | ToolCallStart
    | ToolCallDelta
    | Usage
    | Measured
    | Finished
    | Failed
)
