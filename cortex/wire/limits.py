"""Validators for wire fields: ranges and lengths, with texts a client can act on.

Each is known by what it means in JSON Schema (`keywords`), for the reference of the API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from cortex.wire.converter import FieldError

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

ANY_SIZE = 2**31 - 1  # where an integer has no bound of its own

_KEYWORDS: dict[Any, dict[str, Any]] = {}


def keywords(validator: Any) -> dict[str, Any]:
    """What *validator* demands, as JSON Schema's keywords: nothing where it was not said."""
    return _KEYWORDS.get(validator, {})


def meaning(validator: Validator, **said: Any) -> Validator:
    """*validator*, known to mean what the keywords of JSON Schema in *said* mean."""
    _KEYWORDS[validator] = said
    return validator


def between(low: float, high: float) -> Validator:
    """The number, when there is one, lies in [low, high]."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise FieldError(f"must be between {low:g} and {high:g}, got {value:g}", field.name)

    return meaning(check, minimum=low, maximum=high)


def above(low: float, high: float) -> Validator:
    """The number, when there is one, lies in (low, high]."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and not low < value <= high:
            raise FieldError(
                f"must be greater than {low:g} and at most {high:g}, got {value:g}", field.name
            )

    return meaning(check, exclusiveMinimum=low, maximum=high)


def at_least(low: int, high: int = ANY_SIZE) -> Validator:
    """The integer, when there is one, lies in [low, high]."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            return
        if value < low:
            raise FieldError(
                f"integer below minimum value. Expected a value >= {low}, but got {value} instead.",
                field.name,
                "integer_below_min_value",
            )
        if value > high:
            raise FieldError(
                f"integer above maximum value. Expected a value <= {high}.",
                field.name,
                "integer_above_max_value",
            )

    return meaning(check, minimum=low, **({} if high == ANY_SIZE else {"maximum": high}))


def non_empty(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """The array or string has at least one element."""
    if not value:
        array = isinstance(value, tuple | list)
        raise FieldError(
            f"must hold at least one {'element' if array else 'character'}",
            field.name,
            "empty_array" if array else "empty_string",
        )


# Keywords for other kinds of value mean nothing.
meaning(non_empty, minLength=1, minItems=1)


def at_most(count: int) -> Validator:
    """The array, string or object, when there is one, has at most *count* elements."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and len(value) > count:
            raise FieldError(f"at most {count} allowed, got {len(value)}", field.name, "too_long")

    return meaning(check, maxLength=count, maxItems=count)


def matching(pattern: str) -> Validator:
    """The string, when there is one, matches *pattern* as a whole."""
    compiled = re.compile(pattern)

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and not compiled.fullmatch(value):
            raise FieldError(f"must match {pattern}", field.name)

    return meaning(check, pattern=f"^(?:{pattern})$")


def one_of(*allowed: str) -> Validator:
    """The string, when there is one, is one of *allowed*."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and value not in allowed:
            raise FieldError(f"must be one of {', '.join(allowed)}", field.name)

    return meaning(check, enum=[*allowed])
