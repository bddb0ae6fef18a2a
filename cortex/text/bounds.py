"""What a chat template may compute: checks made before the work, so that they cost next to nothing.

Pure. Sizes are characters, or items of a list.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2

MAX_TEXT = 32 << 20  # characters of any one string, the rendered prompt included
MAX_ITEMS = 1_000_000  # of one list that a template builds
MAX_NUMBER = 1_000_000  # of arguments that may be a width or a count
MAX_POWER = 64

# Widths of six digits, and those that are taken from the arguments: each is that many characters.
_WIDE = re.compile(r"\d{6}|%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")


class Exceeded(jinja2.TemplateError):
    """The template wants more time or memory than any prompt needs."""


def result(value: Any) -> Any:
    """*value*, unless it is too large."""
    if isinstance(value, str | bytes) and len(value) > MAX_TEXT:
        raise Exceeded("the template builds too long a text")
    if isinstance(value, int) and value.bit_length() > 4096:
        raise Exceeded("the template computes too large a number")
    return value


def concatenated(pieces: Iterable[str]) -> str:
    """The text of a macro's or a block's *pieces*."""
    known = list(pieces)
    _count(sum(map(len, known)), "")
    return "".join(known)


def operation(operator: str, left: Any, right: Any) -> None:
    """Check the operands of ``+``, ``*``, ``**`` and ``%``."""
    if operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | bytes | list | tuple):
                _count(len(sequence) * _size(times), sequence)
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _count(len(left) + len(right), left)
    elif operator == "**" and (_size(right) > MAX_POWER or _size(left) > MAX_NUMBER):
        raise Exceeded("the template computes too large a power")
    elif operator == "%" and isinstance(left, str):
        form(left)


def form(text: str) -> None:
    """Check a format string."""
    if _WIDE.search(text):
        raise Exceeded("the template formats too wide a field")


def numbers(*args: Any, **kwargs: Any) -> None:
    """Check arguments that may be widths or counts."""
    if any(_size(value) > MAX_NUMBER for value in (*args, *kwargs.values())):
        raise Exceeded("the template asks for too large a number")


def method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    """Check a call of a string's method whose result may be far larger than the string."""
    if name == "replace" and len(args) > 1:
        _replacement(owner, *args[:2])
    elif name == "join" and args:
        joined(args[0], owner)
    elif name == "expandtabs":
        _count(owner.count("\t") * (_size(args[0]) if args else 8), owner)
    elif name == "translate":
        raise Exceeded("the template translates characters")


def joined(items: Any, separator: Any) -> None:
    """Check what joining *items*, a sequence, would give."""
    if isinstance(items, str | list | tuple):
        shown(items)
        _count(len(items) * len(str(separator)), "")


def shown(value: Any) -> Any:
    """*value*, unless it is too long when written out: lists may hold one another many times."""
    text, items, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            text += len(item)
        elif isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
        items += 1
        if text > MAX_TEXT or items + len(stack) > 2 * MAX_ITEMS:
            raise Exceeded("the template builds too long a text")
    return value


def filters(known: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Those of jinja2's filters whose results can grow, with their checks."""
    checks: dict[str, Callable[..., None]] = {
        "replace": lambda value, old, new, *_: _replacement(str(value), str(old), str(new)),
        "join": lambda value, d="", *_, **__: joined(value, d),
        "format": lambda value, *_, **__: form(str(value)),
        "sum": _sum,
        "string": lambda value: _ignored(shown(value)),
        "pprint": lambda value: _ignored(shown(value)),
        **dict.fromkeys(("center", "indent", "wordwrap", "batch", "slice"), _widths),
    }
    return {name: _checked(known[name], check) for name, check in checks.items()}


def _checked(filter_: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    passed = hasattr(filter_, "jinja_pass_arg")  # jinja2 gives it a context before the value

    @functools.wraps(filter_)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[passed:], **kwargs)
        return result(filter_(*args, **kwargs))

    return checked


def _widths(value: Any, *args: Any, **kwargs: Any) -> None:
    numbers(*args, **kwargs)
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, str) and isinstance(value, str):
            _count(len(value) * len(argument), value)


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise Exceeded("the template sums up lists")


def _replacement(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _count(text.count(old) * len(new), text)


def _count(size: int, kind: Any) -> None:
    if size > (MAX_TEXT if isinstance(kind, str | bytes) else MAX_ITEMS):
        raise Exceeded("the template builds too long a text")


def _size(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _ignored(_: Any) -> None:
    return None
