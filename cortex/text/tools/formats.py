"""The table of tool-call formats. A new family of models is one more row.

How each family writes calls is told by its chat template; the rows of families whose template was
not at hand follow their model cards.
"""

from __future__ import annotations

import enum
import re
import secrets
import string
from collections.abc import Callable
from functools import partial

import attrs

from cortex.text.tools.body import BodyByFirst, MakeBody
from cortex.text.tools.json_call import JsonCall
from cortex.text.tools.named_call import NamedCall
from cortex.text.tools.python_call import PythonCall
from cortex.text.tools.tagged_call import TaggedCall, Tags

_ALPHANUMERIC = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A call id as OpenAI shapes them."""
    return f"call_{secrets.token_hex(12)}"


def new_short_id() -> str:
    """Nine letters and digits: the templates of Mistral's models refuse any other id."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Arguments(enum.Enum):
    """How arguments are written."""

    JSON = "json"
    TAGS = "tags"
    PYTHON = "python"


@attrs.frozen
class Spelling:
    """How a model is made to write calls, all of it literal text but the arguments::

        begin before_name NAME before_arguments ARGUMENTS after_arguments
              [between before_name NAME ...]* end

    `COUNT` in it stands for a number of the model's choice.
    """

    before_name: str
    before_arguments: str
    after_arguments: str = ""
    begin: str = ""
    between: str = ""
    end: str = ""
    arguments: Arguments = Arguments.JSON
    tags: Tags | None = None


COUNT = "\ufdd4"  # a noncharacter, which no format has


@attrs.frozen
class ToolFormat:
    """One family's way to write calls in text.

    One of ``open`` stands before a call, or a call begins with one of ``bare`` (with
    ``at_start``: only where the answer begins, and only for tools that are on offer). After it
    comes one of ``close``, or what ``again`` says another call under the same opener begins with
    ("": anything); ``slack`` may stand before either.
    """

    name: str
    body: MakeBody
    spelling: Spelling
    open: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    at_start: bool = False
    close: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    slack: str = " \t\r\n"
    call_id: Callable[[], str] = new_call_id
    # Tokens of the vocabulary that stand in a call, where the vocabulary has them.
    markers: tuple[str, ...] = ()
    # All of these stand in the chat template of a model that writes this format; no signs: such
    # models cannot be told by their template.
    template_signs: tuple[str, ...] = ()


_QWEN_TAGS = Tags(
    name_open="<function=",
    name_end=">",
    key_open="<parameter=",
    key_end=">",
    value_open="",
    value_end="</parameter>",
    end="</function>",
    closer="</tool_call>",
    lines=True,
)
_GLM_TAGS = Tags(
    name_open="",
    name_end="\n",
    key_open="<arg_key>",
    key_end="</arg_key>",
    value_open="<arg_value>",
    value_end="</arg_value>",
    end="</tool_call>",
    closer="</tool_call>",
    lines=False,
)
_LISTED_JSON = partial(JsonCall, listed=True)
_QWEN_TAGGED = partial(TaggedCall, tags=_QWEN_TAGS)
# Models of either kind were seen to write the other's calls.
_QWEN = partial(BodyByFirst, readers={"{": _LISTED_JSON, "[": _LISTED_JSON}, otherwise=_QWEN_TAGGED)
_GLM = partial(
    BodyByFirst,
    readers={"{": _LISTED_JSON, "[": _LISTED_JSON},
    otherwise=partial(TaggedCall, tags=_GLM_TAGS),
)
_MISTRAL = partial(
    BodyByFirst,
    readers={"{": _LISTED_JSON, "[": _LISTED_JSON},
    otherwise=partial(
        NamedCall,
        head=re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*"),
    ),
)
_DEEPSEEK = partial(
    NamedCall,
    head=re.compile(
        r"\s*(?:function<｜tool▁sep｜>)?(?P<name>[\w.-]+)(?:<｜tool▁sep｜>)?\s*(?:```json)?\s*"
    ),
)
_KIMI = partial(
    NamedCall,
    head=re.compile(
        r"\s*(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
    ),
)


def _in_section(section: str, marker: str) -> tuple[str, ...]:
    """*marker* as it may stand after the opener of a section, and alone."""
    return (section + marker, section + "\n" + marker, marker)


def _ending_section(marker: str, section: str) -> tuple[str, ...]:
    return (marker + section, marker + "\n" + section, marker)


_HERMES_ROW = ToolFormat(
    name="hermes",
    body=_QWEN,
    open=("<tool_call>",),
    close=("</tool_call>",),
    again=("{",),
    slack=" \t\r\n,}]",  # small models close one brace too many
    markers=("<tool_call>", "</tool_call>"),
    template_signs=("<tool_call>", "</tool_call>", "arguments"),
    spelling=Spelling(
        before_name='<tool_call>\n{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}\n</tool_call>",
        between="\n",
    ),
)
_MISTRAL_ROW = ToolFormat(
    name="mistral",
    body=_MISTRAL,
    open=("[TOOL_CALLS]",),
    close=("]",),
    again=("{",),
    slack=" \t\r\n,",
    call_id=new_short_id,
    markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    template_signs=("[TOOL_CALLS]",),
    spelling=Spelling(
        begin="[TOOL_CALLS] [",
        before_name='{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}",
        between=", ",
        end="]",
    ),
)
_DEEPSEEK_ROW = ToolFormat(
    name="deepseek_v3",
    body=_DEEPSEEK,
    open=_in_section("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    close=(
        *_ending_section("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        *_ending_section("```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    markers=(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    template_signs=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json"),
    spelling=Spelling(
        begin="<｜tool▁calls▁begin｜>",
        before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        before_arguments="\n```json\n",
        after_arguments="\n```<｜tool▁call▁end｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
)

# The more particular come first: the first row whose signs a template has is taken.
FORMATS: tuple[ToolFormat, ...] = (
    attrs.evolve(
        _HERMES_ROW,
        name="qwen3_coder",
        bare=("<function=",),
        again=("<function=", "{"),
        template_signs=("<tool_call>", "<function="),
        spelling=Spelling(
            before_name="<tool_call>\n<function=",
            before_arguments=">\n",
            after_arguments="</function>\n</tool_call>",
            between="\n",
            arguments=Arguments.TAGS,
            tags=_QWEN_TAGS,
        ),
    ),
    ToolFormat(
        name="glm45",
        body=_GLM,
        open=("<tool_call>",),
        close=("</tool_call>",),
        markers=(
            "<tool_call>",
            "</tool_call>",
            "<arg_key>",
            "</arg_key>",
            "<arg_value>",
            "</arg_value>",
        ),
        template_signs=("<tool_call>", "<arg_key>"),
        spelling=Spelling(
            before_name="<tool_call>",
            before_arguments="\n",
            after_arguments="</tool_call>",
            between="\n",
            arguments=Arguments.TAGS,
            tags=_GLM_TAGS,
        ),
    ),
    _HERMES_ROW,
    attrs.evolve(
        _MISTRAL_ROW,
        name="mistral_v11",
        template_signs=("[TOOL_CALLS]", "[ARGS]"),
        spelling=Spelling(before_name="[TOOL_CALLS]", before_arguments="[ARGS]"),
    ),
    _MISTRAL_ROW,
    _DEEPSEEK_ROW,
    attrs.evolve(
        _DEEPSEEK_ROW,
        name="deepseek_v31",
        template_signs=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        spelling=Spelling(
            begin="<｜tool▁calls▁begin｜>",
            before_name="<｜tool▁call▁begin｜>",
            before_arguments="<｜tool▁sep｜>",
            after_arguments="<｜tool▁call▁end｜>",
            end="<｜tool▁calls▁end｜>",
        ),
    ),
    ToolFormat(
        name="kimi_k2",
        body=_KIMI,
        open=_in_section("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        close=_ending_section("<|tool_call_end|>", "<|tool_calls_section_end|>"),
        markers=(
            "<|tool_calls_section_begin|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        ),
        template_signs=("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
        spelling=Spelling(
            begin="<|tool_calls_section_begin|>",
            before_name="<|tool_call_begin|>functions.",
            before_arguments=f":{COUNT}<|tool_call_argument_begin|>",
            after_arguments="<|tool_call_end|>",
            end="<|tool_calls_section_end|>",
        ),
    ),
    ToolFormat(
        name="pythonic",
        body=PythonCall,
        open=("<|python_start|>", "<|tool_call_start|>"),
        bare=("[",),
        at_start=True,
        close=("]<|python_end|>", "]<|tool_call_end|>", "]"),
        again=("",),
        slack=" \t\r\n,",
        markers=("<|python_start|>", "<|python_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
        template_signs=("func_name1(",),
        spelling=Spelling(
            begin="[",
            before_name="",
            before_arguments="(",
            after_arguments=")",
            between=", ",
            end="]",
            arguments=Arguments.PYTHON,
        ),
    ),
    ToolFormat(
        name="llama3_json",
        body=partial(JsonCall, bare=True),
        open=("<|python_tag|>",),
        bare=("{",),
        at_start=True,
        again=("{",),
        slack=" \t\r\n;,",
        markers=("<|python_tag|>",),
        template_signs=("ipython", '"parameters":'),
        spelling=Spelling(
            before_name='{"name": "',
            before_arguments='", "parameters": ',
            after_arguments="}",
            between="; ",
        ),
    ),
)
BY_NAME = {row.name: row for row in FORMATS}


def find_format(template_source: str) -> ToolFormat | None:
    """The format that a model with this chat template writes; None where it is not known here."""
    for row in FORMATS:
        if row.template_signs and all(sign in template_source for sign in row.template_signs):
            return row
    return None
