"""The jinja2 environment for chat templates: what Hugging Face's offers, within bounds.

A template comes with a checkpoint: it is somebody else's program. The sandbox keeps it from
Python's internals; the bounds here keep it from the machine's time and memory. There is no clock:
the bounds are counts, so that the same messages always give the same answer.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from cortex.text import bounds
from cortex.text.bounds import MAX_TEXT, Exceeded

MAX_TURNS = 300_000  # loop turns and macro calls of one render: a second at most

# The marks of `marking` outlive ASCII JSON; a backslash of the text's own is a pair, taken first.
_ESCAPED = re.compile(r"\\\\|\\u(fdd[01])")

_turns: contextvars.ContextVar[list[int]] = contextvars.ContextVar("template turns")


class Raised(jinja2.TemplateError):
    """The template's own ``raise_exception``: its message is meant for the client."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so in jinja2

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Bounded(jinja2.visitor.NodeTransformer):
    """Counts every loop turn and macro call, and every ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _call("count_turn", node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _call("count_turn", node))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        attribute = nodes.EnvironmentAttribute("concat_bounded", lineno=node.lineno)
        return nodes.Call(attribute, node.nodes, [], None, None, lineno=node.lineno)


def _call(name: str, near: nodes.Node) -> nodes.Output:
    attribute = nodes.EnvironmentAttribute(name, lineno=near.lineno)
    call = nodes.Call(attribute, [], [], None, None, lineno=near.lineno)
    return nodes.Output([call], lineno=near.lineno)


class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """trim_blocks, lstrip_blocks, loop controls, ``tojson`` that escapes nothing."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(bounds.concatenated)

    def __init__(self, now: Callable[[], datetime.datetime] = datetime.datetime.now) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalized,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _to_json
        self.filters.update(bounds.filters(self.filters))
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: now().strftime(form)
        self.globals["namespace"] = _Namespace
        self.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
        del self.globals["lipsum"]

    def compiled(self, source: str) -> jinja2.Template:
        """*source*, with its bounds built in. Raises ``jinja2.TemplateSyntaxError``."""
        tree = _Bounded().visit(self.parse(source))
        tree.set_environment(self)
        code = self.compile(tree)
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def variables(self, source: str) -> frozenset[str]:
        """The names that *source*, which compiles, takes from outside."""
        return frozenset(jinja2.meta.find_undeclared_variables(self.parse(source)))

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """The text; raises jinja2's errors, `Exceeded` and whatever Python raises inside."""
        token = _turns.set([0])
        size, pieces = 0, []
        try:
            for piece in template.generate(variables):
                size += len(piece)
                if size > MAX_TEXT:
                    raise Exceeded("the template writes too much text")
                pieces.append(piece)
        finally:
            _turns.reset(token)
        return "".join(pieces)

    def count_turn(self) -> str:
        turns = _turns.get()
        turns[0] += 1
        if turns[0] > MAX_TURNS:
            raise Exceeded("the template loops too long")
        return ""

    def concat_bounded(self, *values: Any) -> str:
        text: str = bounds.result("".join([str(bounds.shown(value)) for value in values]))
        return text

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        bounds.operation(operator, left, right)
        return bounds.result(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            bounds.form(value.__self__)
        return wrapped

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        bounds.numbers(*args, **kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            bounds.method(owner, obj.__name__, args)
        return bounds.result(super().call(context, obj, *args, **kwargs))


class _Namespace(jinja2.utils.Namespace):
    """``namespace()`` without the underscore names that lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # as jinja2's own does, so that `namespace(self=1)` works
        for name in dict(*rest, **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace takes no names that begin with _")


def _finalized(value: Any) -> Any:
    return value if isinstance(value, str) else bounds.shown(value)


def _raise_exception(message: object) -> None:
    raise Raised(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 100:
        raise Exceeded("the template indents too far")
    text = json.dumps(
        bounds.shown(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return _ESCAPED.sub(_unescaped, text) if ensure_ascii else text


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else match[0]
