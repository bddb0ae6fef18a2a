"""A model's chat template: messages -> prompt text -> token ids.

Rendering is Hugging Face's (`sandbox` for the language, `template_files` for where templates are).
It runs somebody else's program: call it in a thread. What a template refuses is tried again in
another form before the client is told: see `ChatTemplate.render`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import jinja2

from cortex.errors import CheckpointError, TemplateError, clip
from cortex.text.bounds import Exceeded
from cortex.text.marking import Marker, encode_marked, strip_marks
from cortex.text.messages import (
    REASONING_FIELDS,
    MessageStyle,
    for_template,
    system_in_user,
    with_leading_system,
)
from cortex.text.reasoning import PAIRS
from cortex.text.sandbox import Raised, TemplateEnvironment
from cortex.text.template_files import DEFAULT, TOOL_USE, read_templates
from cortex.text.tokenizer import Tokenizer

# For checkpoints without a template whose vocabulary has ChatML's markers.
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

# The model's own words may hold its thinking, which templates look for and rewrite.
_REASONING_TOKENS = re.compile("|".join(re.escape(token) for pair in PAIRS for token in pair))

# Stands behind the text to be continued; the space tells whether the template trims.
_TAIL = "\ufdd3"
_TAIL_AND_SPACE = _TAIL + " "

# Variables by which templates turn thinking on and off.
SWITCHES = ("enable_thinking", "thinking")
# The values of ``reasoning_effort``, from the least on.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

Message = Mapping[str, Any]


@attrs.frozen
class TemplateFeatures:
    """What a template was seen to do when tried."""

    tools: bool  # writes the tools it is given
    thinking: bool  # ``enable_thinking`` (or ``thinking``) changes the prompt
    system: bool  # writes system messages
    switches: tuple[str, ...] = ()  # those of `SWITCHES` that it reads
    efforts: tuple[str, ...] = ()  # values of ``reasoning_effort`` that it takes, if it reads it


class ChatTemplate:
    """A checkpoint's chat template with its tokenizer. Immutable; safe in several threads."""

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer) -> None:
        """*sources* by name, with ``default``. `CheckpointError` where one is no template, or
        where it takes more time or memory for a short message than any prompt needs."""
        self._environment = TemplateEnvironment()
        self._tokenizer = tokenizer
        self._tokens = tokenizer.special_tokens()
        self._marker = Marker(tokenizer.control, tokenizer.control_pattern)
        self.source = sources[DEFAULT]
        self.tool_source = sources.get(TOOL_USE, self.source)
        self._default = self._compiled(self.source)
        self._tool_use = self._compiled(self.tool_source)
        self._style = MessageStyle(knows_developer="developer" in self.source)
        self._style = _style_of(self._trial, self._style)
        self.features = self._probe()

    @classmethod
    def from_directory(cls, directory: Path, tokenizer: Tokenizer) -> Self:
        """The template in *directory*; `TemplateError` where there is none (see `find`)."""
        found = cls.find(directory, tokenizer)
        if found is None:
            raise TemplateError("this model has no chat template: use /v1/completions")
        return found

    @classmethod
    def find(cls, directory: Path, tokenizer: Tokenizer) -> Self | None:
        """The template in *directory*, ChatML where the vocabulary has its markers, else None."""
        sources = read_templates(directory, tokenizer.config)
        if not sources:
            if not {"<|im_start|>", "<|im_end|>"} <= tokenizer.control.keys():
                return None
            sources = {DEFAULT: CHATML}
        return cls(sources, tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text.

        Messages are rendered as they are (see `messages.for_template`). Where the template refuses
        them (many want one system message, and first), they are tried with all system messages
        merged into a leading one, then into the first user message. `TemplateError` carries the
        template's own words for the messages as they came.
        """
        return strip_marks(
            self._render_marked(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                kwargs=kwargs,
            )
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids: `render`, then control tokens only where the template wrote them.

        What users write (contents, names, arguments, tool schemas) stays text: see `marking`. Of an
        assistant's content the reasoning markers alone are taken for what they are.
        """
        marked = self._render_marked(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=kwargs,
        )
        return encode_marked(self._tokenizer, marked)

    def _render_marked(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: Mapping[str, Any] | None,
    ) -> str:
        if continue_final_message:
            add_generation_prompt = False
            _check_continuable(messages)
        variables = {
            **self._marker.mark(dict(kwargs or {})),
            "tools": self._marker.mark(list(tools)) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        variables.setdefault("documents", None)
        refusal: TemplateError | None = None
        for form in _forms(messages):
            marked = [self._marked(message) for message in for_template(form, self._style)]
            if continue_final_message:
                marked[-1]["content"] = _with_tail(marked[-1]["content"])
            try:
                text = self._run({**variables, "messages": marked})
            except TemplateError as error:
                refusal = refusal or error
                continue
            return _cut_at_tail(text) if continue_final_message else text
        raise refusal or TemplateError("there are no messages", param="messages")

    def _marked(self, message: dict[str, Any]) -> dict[str, Any]:
        role = message.get("role")
        keep = _REASONING_TOKENS if role == "assistant" else None
        marked: dict[str, Any] = {}
        for key, value in message.items():
            if key == "role":  # templates compare it; one that they do not know may be anything
                known = isinstance(value, str) and value.isidentifier()
                marked[key] = value if known else self._marker.mark(value)
            elif key == "content" or key in REASONING_FIELDS:
                marked[key] = self._marker.mark(value, keep)
            else:
                marked[key] = self._marker.mark(value)
        return marked

    def _run(self, variables: dict[str, Any]) -> str:
        template = self._tool_use if variables.get("tools") else self._default
        try:
            return self._environment.render(template, {**self._tokens, **variables})
        except Raised as error:
            raise TemplateError(f"chat template: {clip(error, 500)}", param="messages") from error
        except Exceeded as error:
            raise TemplateError(f"chat template: {error}") from error
        except RecursionError as error:
            raise TemplateError("chat template: it calls itself too deeply") from error
        except Exception as error:  # the template is a program of somebody else's
            raise TemplateError(f"chat template failed: {clip(error, 300)}") from error

    def _compiled(self, source: str) -> jinja2.Template:
        try:
            return self._environment.compiled(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template is not valid: {clip(error, 300)}") from error
        except (RecursionError, SyntaxError, MemoryError, OverflowError) as error:
            raise CheckpointError("the chat template is too deep to be compiled") from error

    def _trial(self, messages: list[dict[str, Any]], style: MessageStyle, **more: Any) -> str:
        """What the template makes of *messages*; "" where it refuses."""
        variables: dict[str, Any] = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._run({**variables, "messages": for_template(messages, style), **more})
        except TemplateError as error:
            if isinstance(error.__cause__, Exceeded):  # one trial of it is enough
                raise CheckpointError(error.message) from error
            return ""

    def _probe(self) -> TemplateFeatures:
        user = {"role": "user", "content": "probe user"}
        tool = {
            "type": "function",
            "function": {
                "name": "probe_tool",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        system = {"role": "system", "content": "probe system"}
        prompts = {
            (switch, value): self._trial([user], self._style, **{switch: value})
            for switch in SWITCHES
            for value in (True, False)
        }
        variables = self._environment.variables
        read = variables(self.source) | variables(self.tool_source)
        efforts: tuple[str, ...] = ()
        if "reasoning_effort" in read:
            efforts = tuple(
                e for e in EFFORTS if self._trial([user], self._style, reasoning_effort=e)
            )
        return TemplateFeatures(
            tools="probe_tool" in self._trial([user], self._style, tools=[tool]),
            thinking=any(prompts[switch, True] != prompts[switch, False] for switch in SWITCHES),
            switches=tuple(switch for switch in SWITCHES if switch in read),
            efforts=efforts,
            system="probe system" in self._trial([system, user], self._style),
        )


def _style_of(trial: Callable[..., str], style: MessageStyle) -> MessageStyle:
    """*style* with what the template takes, found by *trial*."""
    said = {"role": "user", "content": "probe user"}
    parts = {"role": "user", "content": [{"type": "text", "text": "probe user"}]}
    as_list = attrs.evolve(style, parts=True, strings=False)
    takes_strings = "probe user" in trial([said], style)
    listed = trial([parts], as_list)
    takes_parts = "probe user" in listed and "'type'" not in listed and '"type"' not in listed
    style = attrs.evolve(style, parts=takes_parts, strings=takes_strings or not takes_parts)
    function = {"name": "probe_tool", "arguments": {}}
    for short in (False, True):
        call = {"id": "probe0123" if short else "call_1", "type": "function", "function": function}
        called = {"role": "assistant", "tool_calls": [call]}
        for content in (None, ""):
            style = attrs.evolve(style, call_content=content, short_ids=short)
            shown = trial([said, called], style)
            if "probe_tool" in shown and "None" not in shown:
                return style
    return attrs.evolve(style, call_content="", short_ids=False)


def _forms(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The ways in which *messages* are tried."""
    yield messages
    roles = [message.get("role") for message in messages]
    if "system" in roles or "developer" in roles:
        leading = with_leading_system(messages)
        if leading != list(messages):
            yield leading
        yield system_in_user(messages)


def _check_continuable(messages: Sequence[Message]) -> None:
    final = messages[-1] if messages else {}
    if final.get("role") != "assistant" or not final.get("content"):
        raise TemplateError(
            "continue_final_message: the last message must be an assistant's, with content",
            param="messages",
        )


def _with_tail(content: Any) -> Any:
    if isinstance(content, str):
        return content + _TAIL_AND_SPACE
    for n in range(len(content) - 1, -1, -1):
        part = content[n]
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            tailed = {**part, "text": part["text"] + _TAIL_AND_SPACE}
            return [*content[:n], tailed, *content[n + 1 :]]
    raise TemplateError("continue_final_message: the last message has no text", param="messages")


def _cut_at_tail(text: str) -> str:
    at = text.rfind(_TAIL)
    if at < 0:
        raise TemplateError("continue_final_message: the template leaves out the last message")
    return text[:at] if text.startswith(_TAIL_AND_SPACE, at) else text[:at].rstrip()
