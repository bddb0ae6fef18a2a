"""From a request's wish for structure to what holds its completions to it.

- ``response_format`` and ``structured`` hold the content of the answer.
- ``tool_choice`` required or naming a function: the answer is tool calls and nothing else, whatever
  is asked of the content; of a named function exactly one.
- Tools that the model may call, beside a wish for the content: the answer is either content as
  wished or tool calls.
- Tools that the model may call, one of them ``strict``: free text, then calls with arguments as the
  schemas of the strict ones say. Only where the model opens its calls with a control token: other
  openers cannot be told from text.

The grammar holds what follows the model's thinking (`text.grammar.thinking`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from cortex.engine.constraint import Constraint
from cortex.errors import BadRequest, Overloaded
from cortex.neuron.model_text import ModelText
from cortex.neuron.prompt import Prompt, callable_tools
from cortex.text.grammar import source
from cortex.text.grammar.compiler import Grammar, GrammarCompiler
from cortex.text.grammar.limits import TOO_COMPLEX
from cortex.text.grammar.source import Source
from cortex.text.grammar.thinking import AfterThinking, Phase, ThinkingTokens
from cortex.text.tokenizer import Tokenizer
from cortex.text.tools.grammars import begins_with_token, call_grammar
from cortex.wire.openai import ChatRequest, CompletionRequest, Structured

COMPILE_SECONDS = 10.0
COMPILERS = 2  # at a time: each takes a core, and the library bounds its time but not its number


@attrs.frozen(eq=False)
class Guide:
    """A request's compiled wish. ``thinking`` None: the model does not think here."""

    grammar: Grammar
    tokenizer: Tokenizer
    thinking: ThinkingTokens | None = None

    def constraint(self, prompt: Prompt) -> Constraint:
        """What one completion of *prompt* is held to."""
        matcher = self.grammar.matcher()
        if self.thinking is None:
            return matcher
        phase = Phase.THINKING
        if not prompt.in_reasoning:
            phase = self.thinking.phase_after(self.tokenizer, prompt.ids)
        return AfterThinking(matcher, self.thinking, phase)

    def answer(self) -> Constraint:
        """What follows thinking that was closed from outside is held to."""
        return self.grammar.matcher()


@attrs.define(eq=False)
class _Compilers:
    """What is built once for a model. It holds no `ModelText`, so that it goes when that goes."""

    grammars: GrammarCompiler
    thinking: ThinkingTokens | None = None

    def guide(self, text: ModelText, wish: Source, *, thinks: bool) -> Guide:
        """*wish* compiled, for the model with *text*. Blocks."""
        grammar = self.grammars.compile(wish)
        if not thinks or text.markers is None:
            return Guide(grammar, text.tokenizer)
        if self.thinking is None:
            self.thinking = ThinkingTokens.of(text.tokenizer, text.markers, text.defaults.eos_ids)
        return Guide(grammar, text.tokenizer, self.thinking)


@attrs.define(eq=False)
class Grammars:
    """Compiles in worker threads, a few at a time."""

    _seconds: float = COMPILE_SECONDS
    _compilers: weakref.WeakKeyDictionary[ModelText, _Compilers] = attrs.field(
        factory=weakref.WeakKeyDictionary, init=False
    )
    _limiter: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(COMPILERS), init=False
    )

    async def chat(self, text: ModelText, request: ChatRequest) -> Guide | None:
        """What *request* is held to, None where it may answer freely. `BadRequest` names the field
        that cannot be enforced."""
        if not (
            request.structured_format
            or request.structured
            or request.choice.forced
            or any(tool.function and tool.function.strict for tool in request.tools or ())
        ):
            return None
        # A prompt that ends within the answer is followed by the rest of it.
        thinks = not request.continue_final_message
        return await self._compiled(text, lambda: chat_source(text, request), thinks=thinks)

    async def completion(self, text: ModelText, request: CompletionRequest) -> Guide | None:
        """As `chat`, for a raw prompt."""
        asked = request.structured
        if asked is None:
            return None
        return await self._compiled(text, lambda: _structured(asked), thinks=False)

    async def _compiled(
        self, text: ModelText, wish: Callable[[], Source | None], *, thinks: bool
    ) -> Guide | None:
        compilers = self._compilers.get(text)
        if compilers is None:
            compilers = _Compilers(GrammarCompiler(text.tokenizer, text.defaults.eos_ids))
            self._compilers[text] = compilers
        begun = threading.Event()

        def work() -> Guide | None:
            begun.set()
            wished = wish()
            return None if wished is None else compilers.guide(text, wished, thinks=thinks)

        with trio.move_on_after(self._seconds):
            return await trio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._limiter
            )
        if begun.is_set():
            raise BadRequest(
                f"the grammar was not compiled within {self._seconds:g} s", code=TOO_COMPLEX
            )
        raise Overloaded("too many grammars are being compiled")


def chat_source(text: ModelText, request: ChatRequest) -> Source | None:
    """The grammar of *request*'s answers; None where everything is allowed."""
    tools = callable_tools(request)
    choice = request.choice
    parallel = request.parallel_tool_calls is not False and choice.named is None
    if choice.forced:
        return _forced(text, tools, parallel=parallel)
    content = _content(request)
    strict = any(tool["function"].get("strict") for tool in tools)
    if not tools or not (content or strict):
        return content
    calls = _voluntary(text, tools, parallel=parallel)
    if calls is None:
        return content
    if content is not None:
        return source.either(content, calls)
    assert text.tool_format is not None
    told_apart = begins_with_token(text.tool_format, text.tokenizer.control.get)
    return source.after_text(calls) if told_apart else None


def _content(request: ChatRequest) -> Source | None:
    asked = request.structured_format
    if asked is None:
        return None if request.structured is None else _structured(request.structured)
    if asked.json_schema is None or asked.type == "json_object":
        return source.json_object("response_format")
    return source.json_schema(asked.json_schema.schema, "response_format")


def _structured(asked: Structured) -> Source:
    if asked.regex is not None:
        return source.regex(asked.regex, "structured.regex")
    if asked.choice is not None:
        return source.choice(asked.choice, "structured.choice")
    return source.lark(asked.grammar or "", "structured.grammar")


def _forced(text: ModelText, tools: Sequence[dict[str, Any]], *, parallel: bool) -> Source:
    if text.tool_format is None:
        raise BadRequest(
            "how this model writes tool calls is not known: a call cannot be forced",
            param="tool_choice",
            code="unsupported_value",
        )
    return _calls(text, tools, parallel=parallel)


def _voluntary(
    text: ModelText, tools: Sequence[dict[str, Any]], *, parallel: bool
) -> Source | None:
    """The calls that may be made, None where they cannot be described."""
    try:
        return _forced(text, tools, parallel=parallel)
    except BadRequest as error:
        if error.param == "tool_choice":
            return None
        raise


def _calls(text: ModelText, tools: Sequence[dict[str, Any]], *, parallel: bool) -> Source:
    assert text.tool_format is not None
    special = text.tokenizer.control.get
    written = call_grammar(text.tool_format, tools, parallel=parallel, special=special)
    return source.lark(written, "tools")
