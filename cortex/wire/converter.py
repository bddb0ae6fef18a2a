"""JSON values to attrs objects, strictly, with errors that name the JSON path.

Two converters do the same work: a quick one without bookkeeping, and one that keeps track of where
it is, asked only when the quick one failed. Scalars are never coerced ("5" is no 5, true is no 1,
1.0 is no int); unknown fields are ignored, because clients send many.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from cortex.errors import BadRequest, clip

T = TypeVar("T")


class FieldError(ValueError):
    """A value out of its range. ``field`` is its name in the object that was being built."""

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def _strict_int(value: Any, _: type) -> int:
    if type(value) is not int:
        raise FieldError(f"expected an integer, got {_kind(value)}", code="invalid_type")
    return value


def _strict_float(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise FieldError(f"expected a number, got {_kind(value)}", code="invalid_type")
    return float(value)


def _strict_bool(value: Any, _: type) -> bool:
    if type(value) is not bool:
        raise FieldError(f"expected true or false, got {_kind(value)}", code="invalid_type")
    return value


def _strict_str(value: Any, _: type) -> str:
    if type(value) is not str:
        raise FieldError(f"expected a string, got {_kind(value)}", code="invalid_type")
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number"}
    names |= {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "something else")


def _is_sequence(cls: Any) -> bool:
    return getattr(cls, "__origin__", None) in (tuple, list)


def _is_mapping(cls: Any) -> bool:
    return getattr(cls, "__origin__", None) is dict


def _is_optional(cls: Any) -> bool:
    kinds = get_args(cls)
    return get_origin(cls) in (Union, UnionType) and len(kinds) == 2 and NoneType in kinds


def make_converter(*, detailed: bool, forbid_extra_keys: bool = False) -> Converter:
    """A strict converter. *detailed* ones raise errors that `explain` can read."""
    converter = Converter(detailed_validation=detailed, forbid_extra_keys=forbid_extra_keys)
    converter.register_structure_hook(int, _strict_int)
    converter.register_structure_hook(float, _strict_float)
    converter.register_structure_hook(bool, _strict_bool)
    converter.register_structure_hook(str, _strict_str)
    _guard_containers(converter, forbid_extra_keys)
    return converter


def _guarded(cls: Any, converter: Converter, forbid_extra_keys: bool) -> Any:
    build = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=forbid_extra_keys)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise FieldError(f"expected an object, got {_kind(value)}", code="invalid_type")
        return build(value, cls)

    return structure


def _guard_containers(converter: Converter, forbid_extra_keys: bool) -> None:
    """Let an array field take arrays only, an object field and a class objects only."""
    sequence_factory = converter.get_structure_hook
    seen: dict[Any, Any] = {}

    def arrays(cls: Any) -> Any:
        inner_type = cls.__args__[0]

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise FieldError(f"expected an array, got {_kind(value)}", code="invalid_type")
            inner = seen.get(inner_type)
            if inner is None:
                inner = seen[inner_type] = sequence_factory(inner_type)
            if not converter.detailed_validation:
                return tuple([inner(item, inner_type) for item in value])
            return _each(value, inner, inner_type)

        return structure

    def objects(cls: Any) -> Any:
        value_type = cls.__args__[1]

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, Mapping):
                raise FieldError(f"expected an object, got {_kind(value)}", code="invalid_type")
            if value_type is Any:
                return dict(value)
            inner = sequence_factory(value_type)
            return {key: inner(item, value_type) for key, item in value.items()}

        return structure

    def optionals(cls: Any) -> Any:
        value_type = next(each for each in get_args(cls) if each is not NoneType)
        inner: Any = None

        def structure(value: Any, _: Any) -> Any:
            nonlocal inner
            if value is None:
                return None
            if inner is None:  # asked late: a class may hold itself
                inner = converter.get_structure_hook(value_type)
            return inner(value, value_type)

        return structure

    converter.register_structure_hook_factory(_is_optional, optionals)
    converter.register_structure_hook_factory(_is_sequence, arrays)
    converter.register_structure_hook_factory(_is_mapping, objects)
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _guarded(cls, converter, forbid_extra_keys)
    )


def _each(values: list[Any], inner: Any, inner_type: Any) -> tuple[Any, ...]:
    items: list[Any] = []
    for index, value in enumerate(values):
        try:
            items.append(inner(value, inner_type))
        except Exception as exc:
            raise _At(f"[{index}]", exc) from exc
    return tuple(items)


class _At(Exception):
    """An error and the index of the array item it came from."""

    def __init__(self, where: str, cause: Exception) -> None:
        super().__init__(where)
        self.where = where
        self.cause = cause


quick = make_converter(detailed=False)
careful = make_converter(detailed=True)


def structure(value: Any, cls: type[T]) -> T:
    """*value* as a *cls*, or `BadRequest` with the path of what is wrong in ``param``."""
    try:
        return quick.structure(value, cls)
    except BadRequest:
        raise
    except Exception as exc:
        quick_error = exc
    try:
        careful.structure(value, cls)
    except BadRequest:
        raise
    except Exception as exc:
        path, message, code = explain(exc)
        raise BadRequest(
            f"{path}: {message}" if path else message, param=path or None, code=code
        ) from exc
    raise quick_error  # the two converters disagree: our bug, and worth its traceback


def unstructure(value: Any) -> Any:
    """*value* as what `json.dumps` takes."""
    return quick.unstructure(value)


def explain(error: BaseException) -> tuple[str, str, str | None]:
    """The JSON path, the message and the code of the first thing wrong in *error*."""
    path = ""
    while True:
        if isinstance(error, _At):
            path += error.where
            error = error.cause
            continue
        if isinstance(error, ClassValidationError | IterableValidationError):
            noted, bare = error.group_exceptions()
            if noted:
                inner, note = noted[0]
                step = note.name if hasattr(note, "name") else f"[{note.index}]"
                path = f"{path}.{step}" if path and not step.startswith("[") else path + step
                error = inner
                continue
            error = bare[0]
            continue
        break
    return _leaf(path, error)


def _leaf(path: str, error: BaseException) -> tuple[str, str, str | None]:
    if isinstance(error, KeyError) and error.args:
        name = clip(error.args[0])
        if path != name and not path.endswith(f".{name}"):
            path = f"{path}.{name}" if path else name
        return path, "required field missing", "missing_required_parameter"
    if isinstance(error, FieldError):
        if error.field:
            path = f"{path}.{error.field}" if path else error.field
        return path, str(error), error.code
    return path, clip(error, 200), None
