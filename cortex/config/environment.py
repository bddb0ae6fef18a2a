"""Environment variables laid over a file's tables: ``CORTEX_GATEWAY__LISTEN``, ``NEURON_PORT``.

A variable is named after its key path, ``__`` between tables. Its text is read as the key's type;
an empty one counts as not set. Unknown ones are warned about, since they may belong to someone
else or be a typing error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import attrs

from cortex.config.errors import ConfigError, Invalid, nearest
from cortex.config.structure import keys_of
from cortex.config.values import parse_duration

# Read by the command line, its children and the engine, not by a configuration.
COMMAND_VARIABLES = frozenset(
    {
        "CORTEX_CACHE_DIR",
        "CORTEX_COMMAND",
        "CORTEX_CONFIG",
        "CORTEX_ENDPOINT",
        "CORTEX_LOG_FORMAT",
        "CORTEX_LOG_LEVEL",
        "CORTEX_NATIVE",
        "CORTEX_PARENT_FD",
        "CORTEX_API_KEY",
        "NEURON_CONFIG",
        "NEURON_LOG_FORMAT",
        "NEURON_LOG_LEVEL",
    }
)


@attrs.define
class Overlay:
    """Which variables there were: the key paths they set, and what is odd about the others."""

    origins: dict[str, str] = attrs.field(factory=dict)
    warnings: list[str] = attrs.field(factory=list)


def overlay(
    table: dict[str, Any],
    cls: type[Any],
    prefix: str,
    environ: Mapping[str, str],
    *,
    extra: Mapping[str, Any] = {},
    reserved: frozenset[str] = frozenset(),
) -> Overlay:
    """Write the variables that start with *prefix* into *table*, which has the keys of *cls*.

    *extra* are further keys at the top and their types; *reserved* names are left alone.
    ConfigError when a variable's text is not of its key's type.
    """
    known = variables_of(cls, prefix) | {prefix + key.upper(): t for key, t in extra.items()}
    result = Overlay()
    for name in sorted(environ):
        text = environ[name]
        skip = name in reserved or name in COMMAND_VARIABLES
        if not name.startswith(prefix) or skip or not text:
            continue
        if name not in known:
            near = nearest(name, known.keys() | reserved)
            hint = f"; did you mean {near}?" if near else ""
            result.warnings.append(f"environment variable {name} is not known and is ignored{hint}")
            continue
        try:
            value = _read(text, known[name])
        except Invalid as invalid:
            raise ConfigError(f"environment variable {name}: {invalid}") from None
        path = name.removeprefix(prefix).lower().split("__")
        _write(table, path, value)
        result.origins[".".join(path)] = name
    return result


def variables_of(cls: type[Any], prefix: str) -> dict[str, Any]:
    """Every variable that sets a key of *cls*, and the key's type."""
    found: dict[str, Any] = {}
    for key, kind in keys_of(cls).items():
        name = prefix + key.upper()
        if attrs.has(kind):
            found |= variables_of(kind, name + "__")
        elif not _holds_tables(kind):
            found[name] = kind
    return found


def _holds_tables(kind: Any) -> bool:
    return get_origin(kind) in (tuple, dict) and any(attrs.has(a) for a in get_args(kind))


def _write(table: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = table.setdefault(key, {})
        if type(inner) is not dict:  # the file is wrong here, and will be told so
            return
        table = inner
    table[path[-1]] = value


def _read(text: str, kind: Any) -> Any:
    """*text* as `tomllib` would have given a value of type *kind*."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(a for a in get_args(kind) if a is not type(None))
    if kind in (str, Path):
        return text
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise Invalid(f"expected true or false, got {text!r}")
        return words[text.lower()]
    if kind is int:
        return _integer(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise Invalid(f"expected a number, got {text!r}") from None
    if get_origin(kind) is tuple:
        return [_read(item.strip(), get_args(kind)[0]) for item in text.split(",") if item.strip()]
    return parse_duration(text)  # Seconds, the only kind that is left


def _integer(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise Invalid(f"expected an integer, got {text!r}")
    return int(text)
