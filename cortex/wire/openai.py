"""OpenAI's chat and completion requests, with the neuron's documented superset.

Only what is honoured or checked is named; other fields are ignored (`reference/api.md` 1.1).
``None`` stands for absent and for JSON null alike. The larger classes have no slots: a frozen one
is made in half the time without.
"""

from __future__ import annotations

from typing import Any

import attrs

from cortex.wire import limits
from cortex.wire.converter import FieldError, careful, quick
from cortex.wire.tools import FunctionDefinition, Tool, ToolChoice, choice_of, function_names

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_CHOICES = 128
MAX_MESSAGES = 100_000
MAX_PROMPTS = 1024  # of one completion request
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _choices(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not (value and all(value)):
        raise FieldError("must hold at least one text, and none that is empty", field.name)


@attrs.frozen
class TextPart:
    text: str


@attrs.frozen
class MediaPart:
    """A part that is not text: ``kind`` is its type, ``value`` what the client sent."""

    kind: str
    value: dict[str, Any]


Part = TextPart | MediaPart
Content = str | tuple[Part, ...] | None
Stop = str | tuple[str, ...] | None
Prompt = str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...]


@attrs.frozen
class FunctionCall:
    name: str
    arguments: str = ""


@attrs.frozen
class ToolCall:
    function: FunctionCall
    id: str | None = None
    type: str | None = "function"


@attrs.frozen(slots=False)
class Message:
    role: str = attrs.field(
        validator=limits.one_of("system", "developer", "user", "assistant", "tool", "function")
    )
    content: Content = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: FunctionCall | None = None  # of a client that uses the legacy fields

    def __attrs_post_init__(self) -> None:
        if self.role == "function" and self.name is None:
            raise FieldError("a function message needs a name", "name")
        if self.role == "tool" and self.tool_call_id is None:
            raise FieldError("a tool message needs a tool_call_id", "tool_call_id")
        if self.content is None and self.role in ("system", "developer", "user", "tool"):
            raise FieldError("must be a string or an array of parts", "content")


@attrs.frozen
class StreamOptions:
    include_usage: bool | None = None


@attrs.frozen
class JsonSchema:
    """``strict`` makes no difference: what is asked for is enforced."""

    schema: dict[str, Any]
    name: str | None = None
    strict: bool | None = None


@attrs.frozen
class ResponseFormat:
    type: str = attrs.field(validator=limits.one_of("text", "json_object", "json_schema"))
    json_schema: JsonSchema | None = None

    def __attrs_post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise FieldError("required field missing", "json_schema", "missing_required_parameter")


@attrs.frozen
class Structured:
    """What the text of a completion must be: matched by a regular expression, one of several texts,
    or in the language of a Lark grammar."""

    regex: str | None = None
    choice: tuple[str, ...] | None = attrs.field(default=None, validator=_choices)
    grammar: str | None = None

    def __attrs_post_init__(self) -> None:
        given = [self.regex, self.choice, self.grammar]
        if sum(value is not None for value in given) != 1:
            raise FieldError("needs exactly one of regex, choice and grammar")


@attrs.frozen
class Thinking:
    budget_tokens: int | None = attrs.field(default=None, validator=limits.at_least(1))


def _stops(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    stops = (value,) if isinstance(value, str) else value or ()
    if len(stops) > MAX_STOPS:
        raise FieldError(f"at most {MAX_STOPS} stop strings allowed, got {len(stops)}", field.name)
    for stop in stops:
        if not stop:
            raise FieldError("a stop string must not be empty", field.name)
        if len(stop) > MAX_STOP_LENGTH:
            raise FieldError(f"a stop string has at most {MAX_STOP_LENGTH} characters", field.name)


def _logit_bias(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    for key, bias in (value or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise FieldError("keys must be token ids", field.name)
        if not -100 <= bias <= 100:
            raise FieldError("values must be between -100 and 100", field.name)


@attrs.frozen(kw_only=True, slots=False)
class SamplingFields:
    """What chat and completion requests share."""

    model: str = attrs.field(validator=limits.non_empty)
    max_tokens: int | None = attrs.field(default=None, validator=limits.at_least(0))
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = attrs.field(default=None, validator=limits.between(0, 2))
    top_p: float | None = attrs.field(default=None, validator=limits.above(0, 1))
    n: int | None = attrs.field(default=None, validator=limits.at_least(1, MAX_CHOICES))
    stop: Stop = attrs.field(default=None, validator=_stops)
    frequency_penalty: float | None = attrs.field(default=None, validator=limits.between(-2, 2))
    presence_penalty: float | None = attrs.field(default=None, validator=limits.between(-2, 2))
    logit_bias: dict[str, float] | None = attrs.field(default=None, validator=_logit_bias)
    seed: int | None = attrs.field(default=None, validator=limits.at_least(-(2**63), 2**63 - 1))
    user: str | None = None
    # The superset.
    top_k: int | None = attrs.field(default=None, validator=limits.at_least(-1))
    min_p: float | None = attrs.field(default=None, validator=limits.between(0, 1))
    repetition_penalty: float | None = attrs.field(default=None, validator=limits.above(0, 10))
    ignore_eos: bool | None = None
    min_tokens: int | None = attrs.field(default=None, validator=limits.at_least(0))
    on_overflow: str | None = attrs.field(default=None, validator=limits.one_of("clamp", "error"))
    structured: Structured | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


@attrs.frozen(kw_only=True, slots=False)
class ChatRequest(SamplingFields):
    messages: tuple[Message, ...] = attrs.field(
        validator=[limits.non_empty, limits.at_most(MAX_MESSAGES)]
    )
    max_completion_tokens: int | None = attrs.field(default=None, validator=limits.at_least(1))
    logprobs: bool | None = None
    top_logprobs: int | None = attrs.field(default=None, validator=limits.at_least(0, 20))
    tools: tuple[Tool, ...] | None = attrs.field(default=None, validator=limits.at_most(1024))
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: tuple[FunctionDefinition, ...] | None = attrs.field(
        default=None, validator=limits.at_most(1024)
    )
    function_call: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = attrs.field(default=None, validator=limits.one_of(*EFFORTS))
    # The superset.
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    thinking: Thinking | None = None

    def __attrs_post_init__(self) -> None:
        if self.max_tokens == 0 and self.max_completion_tokens is None:
            raise FieldError(
                "integer below minimum value. Expected a value >= 1, but got 0 instead.",
                "max_tokens",
                "integer_below_min_value",
            )
        if self.top_logprobs and not self.logprobs:
            raise FieldError("needs logprobs: true", "top_logprobs")
        if self.structured is not None and self.structured_format is not None:
            raise FieldError("cannot be combined with response_format", "structured")
        self._check_tools()

    def _check_tools(self) -> None:
        if self.functions is not None:
            self._translate_functions()
        names = function_names(self.tools)
        if len(set(names)) != len(names):
            raise FieldError(
                "two tools have the same name", "functions" if self.legacy else "tools"
            )
        choice_of(self.tool_choice, self.tools)

    def _translate_functions(self) -> None:
        """The legacy fields as today's: one call at most, since an answer has room for one."""
        if self.tools:
            raise FieldError("functions and tools exclude each other", "functions")
        choice: Any = self.function_call
        if isinstance(choice, dict):
            if choice.get("name") not in [function.name for function in self.functions or ()]:
                raise FieldError("names a function that is not in functions", "function_call")
            choice = {"type": "function", "function": choice}
        elif choice not in (None, "none", "auto"):
            raise FieldError("must be none, auto or an object", "function_call")
        tools = tuple(Tool("function", function) for function in self.functions or ())
        for name, value in (
            ("tools", tools),
            ("tool_choice", choice),
            ("parallel_tool_calls", False),
        ):
            object.__setattr__(self, name, value)

    @property
    def legacy(self) -> bool:
        """Calls are asked for, and answered, in the fields that came before ``tools``."""
        return self.functions is not None

    @property
    def choice(self) -> ToolChoice:
        return choice_of(self.tool_choice, self.tools)

    @property
    def structured_format(self) -> ResponseFormat | None:
        """``response_format`` where it asks for more than text."""
        asked = self.response_format
        return None if asked is None or asked.type == "text" else asked

    @property
    def completion_limit(self) -> int | None:
        """Tokens the client allows; ``max_completion_tokens`` wins over ``max_tokens``."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens


@attrs.frozen(kw_only=True, slots=False)
class CompletionRequest(SamplingFields):
    prompt: Prompt
    best_of: int | None = attrs.field(default=None, validator=limits.at_least(1, MAX_CHOICES))
    echo: bool | None = None
    logprobs: int | None = attrs.field(default=None, validator=limits.at_least(0, 20))
    suffix: str | None = None

    def __attrs_post_init__(self) -> None:
        several = isinstance(self.prompt, tuple) and not isinstance(self.prompt[0], int)
        if several and len(self.prompt) > MAX_PROMPTS:
            raise FieldError(
                f"at most {MAX_PROMPTS} prompts allowed, got {len(self.prompt)}",
                "prompt",
                "too_long",
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise FieldError("a best_of other than n is not supported", "best_of")
        if self.suffix and self.echo:
            raise FieldError("cannot be combined with suffix", "echo")


@attrs.frozen(kw_only=True)
class TokenizeRequest:
    """Chat messages, rendered by the model's template and counted, or a plain prompt."""

    model: str = attrs.field(validator=limits.non_empty)
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = attrs.field(default=None, validator=limits.one_of(*EFFORTS))
    thinking: Thinking | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_tokens: bool | None = None

    def __attrs_post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise FieldError("either messages or prompt is needed", "messages")
        if self.messages is not None and not self.messages:
            raise FieldError("must hold at least one element", "messages", "empty_array")
        choice_of(self.tool_choice, self.tools)

    @property
    def choice(self) -> ToolChoice:
        return choice_of(self.tool_choice, self.tools)


MEDIA_TYPES = frozenset({"image_url", "input_audio", "file"})


def _register(converter: Any) -> None:
    def part(value: Any, _: Any) -> Part:
        if not isinstance(value, dict):
            raise FieldError("a content part must be an object")
        kind = value.get("type")
        if kind in ("text", "input_text", "output_text", "refusal"):
            text = value.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise FieldError("expected a string", "text", "invalid_type")
            return TextPart(text)
        if kind in MEDIA_TYPES:
            return MediaPart(kind, value)
        raise FieldError("unknown content part type", "type")

    def content(value: Any, _: Any) -> Content:
        if value is None or type(value) is str:
            return value
        if type(value) is not list:
            raise FieldError("expected a string or an array of parts", code="invalid_type")
        parts: tuple[Part, ...] = converter.structure(value, tuple[Part, ...])
        return parts

    def stop(value: Any, _: Any) -> Stop:
        if value is None or type(value) is str:
            return value
        if type(value) is not list:
            raise FieldError("expected a string or an array of strings", code="invalid_type")
        stops: tuple[str, ...] = converter.structure(value, tuple[str, ...])
        return stops

    def prompt(value: Any, _: Any) -> Prompt:
        if type(value) is str:
            return value
        if type(value) is not list or not value:
            raise FieldError("expected a string or a non-empty array", code="invalid_type")
        first = type(value[0])
        kind: Any = {str: str, int: int, list: tuple[int, ...]}.get(first)
        if kind is None:
            raise FieldError("expected strings, token ids or arrays of them", code="invalid_type")
        prompts: Prompt = converter.structure(value, tuple[kind, ...])
        return prompts

    def choice(value: Any, _: Any) -> Any:
        if value is None or isinstance(value, str | dict):
            return value
        raise FieldError("expected a string or an object", code="invalid_type")

    converter.register_structure_hook(Part, part)
    converter.register_structure_hook(Content, content)
    converter.register_structure_hook(Stop, stop)
    converter.register_structure_hook(Prompt, prompt)
    converter.register_structure_hook(str | dict[str, Any] | None, choice)


_register(quick)
_register(careful)
