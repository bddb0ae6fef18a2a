"""Tables to attrs objects, strictly, with errors that name the key path.

Scalars are never coerced ("5" is no 5, true is no 1), arrays are arrays, and a key that its class
does not have is an error with the nearest one it has. Fields with ``metadata=NOT_A_KEY`` are filled
in by the loader and cannot be written in a file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter

from cortex.config.errors import Invalid, unknown
from cortex.config.values import Seconds, parse_duration

T = TypeVar("T")

NOT_A_KEY: Final[dict[str, Any]] = {"cortex.config": "not a key"}

_KINDS = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
_KINDS |= {list: "an array", dict: "a table"}


def keys_of(cls: type[Any]) -> dict[str, Any]:
    """The keys a table of *cls* may have, and the type of each."""
    resolved = attrs.fields(attrs.resolve_types(cls))
    return {f.name: f.type for f in resolved if f.metadata != NOT_A_KEY}


def structure(value: Any, cls: type[T]) -> T:
    """*value*, as `tomllib` read it, as a *cls*; or `Invalid` with the path of the first error."""
    return _converter.structure(value, cls)


def kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "a date or time")


def _scalar(kind: type[Any]) -> Any:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise Invalid(f"expected {_KINDS[kind]}, got {kind_of(value)}")
        return value

    return hook


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise Invalid(f"expected a number, got {kind_of(value)}")
    return float(value)


def _seconds(value: Any, _: Any) -> float:
    if type(value) is str:
        return parse_duration(value)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise Invalid(f'expected seconds or a duration like "30m", got {kind_of(value)}')
    return float(value)


def _path(value: Any, _: Any) -> Path:
    if type(value) is not str or not value or "\0" in value:
        raise Invalid(f"expected a path, got {kind_of(value) if value != '' else 'nothing'}")
    return Path(value).expanduser()


def _array_hook(cls: Any, converter: Converter) -> Any:
    item_type = get_args(cls)[0]

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise Invalid(f"expected an array, got {kind_of(value)}")
        items: list[Any] = []
        for index, item in enumerate(value):
            try:
                items.append(converter.structure(item, item_type))
            except Invalid as invalid:
                raise invalid.within(f"[{index}]") from None
        return tuple(items)

    return hook


def _mapping_hook(cls: Any, converter: Converter) -> Any:
    value_type = get_args(cls)[1]

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise Invalid(f"expected a table, got {kind_of(value)}")
        entries: dict[str, Any] = {}
        for key, item in value.items():
            try:
                entries[key] = converter.structure(item, value_type)
            except Invalid as invalid:
                raise invalid.within(_quoted(key)) from None
        return entries

    return hook


def _table_hook(cls: Any, converter: Converter) -> Any:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise Invalid(f"expected a table, got {kind_of(value)}")
        types = keys_of(cls)
        arguments: dict[str, Any] = {}
        for key, item in value.items():
            if key not in types:
                raise Invalid(unknown("key", key, types), _quoted(key))
            try:
                arguments[key] = converter.structure(item, types[key])
            except Invalid as invalid:
                raise invalid.within(key) from None
        for field in attrs.fields(cls):
            required = field.default is attrs.NOTHING and field.name in types
            if required and field.name not in arguments:
                raise Invalid("required key is missing", field.name)
        return cls(**arguments)

    return hook


def _quoted(key: str) -> str:
    """*key* as it stands in a dotted TOML key."""
    bare = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if bare else '"' + "".join(c if c.isprintable() else "?" for c in key[:80]) + '"'


def _origin(cls: Any) -> Any:
    return get_origin(cls)


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=False, forbid_extra_keys=True)
    for kind in (int, bool, str):
        converter.register_structure_hook(kind, _scalar(kind))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) is tuple, lambda cls: _array_hook(cls, converter)
    )
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) is dict, lambda cls: _mapping_hook(cls, converter)
    )
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table_hook(cls, converter))
    converter.register_structure_hook_func(
        lambda cls: _origin(cls) is Annotated and cls == Seconds, _seconds
    )
    return converter


_converter = _make_converter()
