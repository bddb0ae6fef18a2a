"""The OpenAPI document (3.1) of a role: its operations, in the order of its routes.

A role lists an `Operation` for each route; everything that repeats (errors by status, headers,
authentication) is said here, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from cortex import errors
from cortex.errors import CortexError
from cortex.wire.reference.schema import INTEGER, STRING, Components, Schema, described, ref

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")

# What every route that reads a body may answer, and every other one.
READING = (
    errors.BadRequest,
    errors.RequestTimeout,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
)
ANY = (errors.InternalError,)
# What a route answers that asks a model.
ASKING = (
    errors.Forbidden,
    errors.ModelNotFound,
    errors.ContextLengthExceeded,
    errors.TemplateError,
    errors.RateLimited,
    errors.BudgetSpent,
    errors.Overloaded,
    errors.UpstreamError,
    errors.Unavailable,
    errors.LoadFailed,
    errors.SourceUnavailable,
    errors.DiskFull,
    errors.DeviceOutOfMemory,
    errors.NoFeasibleNode,
)


@attrs.frozen(kw_only=True)
class Operation:
    """One route. ``body`` is the class of what it reads; ``answer`` the schema of what it tells,
    None for nothing but errors; ``events`` that of a stream's data, asked for by ``stream``
    unless it is the only form. ``also`` are further statuses with their schemas. ``status_of`` and
    ``error`` are for routes whose errors are not OpenAI's."""

    summary: str
    tag: str
    body: Any = None
    answer: Schema | None = None
    events: Schema | None = None
    also: Mapping[int, Schema] = attrs.field(factory=dict)
    media: str = JSON
    query: Mapping[str, Schema] = attrs.field(factory=dict)
    headers: Mapping[str, Schema] = attrs.field(factory=dict)
    refusals: Sequence[type[CortexError]] = ()
    example: Mapping[str, Any] | None = None
    error: Schema = attrs.field(factory=lambda: ref("Error"))
    status_of: Callable[[CortexError], int] = lambda error: error.status


Key = tuple[str, str]  # method and path of a route


@attrs.frozen(kw_only=True, eq=False)
class Document:
    """*scope_of* gives a path's scope ("public" needs no key); *keys* are the ways of sending
    one: the names of OpenAPI's security schemes with their definitions."""

    title: str
    description: str
    version: str
    operations: Mapping[Key, Operation]
    components: Components
    scope_of: Callable[[str], str]
    keys: Mapping[str, Schema]

    def build(self) -> dict[str, Any]:
        """The document as JSON's values."""
        paths: dict[str, dict[str, Any]] = {}
        for (method, path), operation in self.operations.items():
            shown = _PARAMETER.sub(r"{\1}", path)
            paths.setdefault(shown, {})[method.lower()] = self._operation(method, path, operation)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": self.title,
                "version": self.version,
                "description": self.description,
                "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
            },
            "tags": [{"name": name} for name in dict.fromkeys(self._tags())],
            "paths": paths,
            "components": {
                "schemas": self.components.schemas,
                "securitySchemes": dict(self.keys),
            },
        }

    def _tags(self) -> Iterable[str]:
        return (operation.tag for operation in self.operations.values())

    def _operation(self, method: str, path: str, operation: Operation) -> dict[str, Any]:
        scope = self.scope_of(path)
        told: dict[str, Any] = {
            "operationId": _identifier(method, path),
            "summary": operation.summary,
            "tags": [operation.tag],
            "security": [] if scope == "public" else [{name: []} for name in self.keys],
        }
        if scope == "admin":
            told["description"] = "Needs a key with the scope `admin`."
        if parameters := _parameters(path, operation):
            told["parameters"] = parameters
        if operation.body is not None:
            content: dict[str, Any] = {"schema": self.components.of(operation.body)}
            if operation.example is not None:
                content["example"] = dict(operation.example)
            told["requestBody"] = {"required": True, "content": {JSON: content}}
        told["responses"] = _responses(operation, guarded=scope != "public")
        return told


def _identifier(method: str, path: str) -> str:
    words = re.findall(r"\w+", _PARAMETER.sub(r"by_\1", path))
    return "_".join([method.lower(), *words, *(["slash"] if path.endswith("/") else [])])


def _parameters(path: str, operation: Operation) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": STRING}
        for name in _PARAMETER.findall(path)
    ]
    for place, schemas in (("query", operation.query), ("header", operation.headers)):
        for name, schema in schemas.items():
            schema = dict(schema)
            description = schema.pop("description", None)
            parameter = {"name": name, "in": place, "schema": schema}
            found.append(parameter | ({"description": description} if description else {}))
    return found


_REQUEST_ID = {"x-request-id": {"description": "As in the log.", "schema": STRING}}
_RETRY_AFTER = {"retry-after": {"description": "Seconds.", "schema": {**INTEGER, "minimum": 0}}}


def _responses(operation: Operation, *, guarded: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.media] = {"schema": operation.answer}
    if operation.events is not None:
        content[EVENT_STREAM] = {
            "schema": described(STRING, "Server-sent events."),
            "x-event-schema": operation.events,
        }
    if content:
        found["200"] = {"description": "Done.", "headers": _REQUEST_ID, "content": content}
    for status, schema in operation.also.items():
        found[str(status)] = {
            "description": f"Status {status}.",
            "headers": _REQUEST_ID,
            "content": {JSON: {"schema": schema}},
        }
    for status, codes in _refusals(operation, guarded=guarded).items():
        known = found.get(str(status))
        if known is None:
            known = found[str(status)] = {"content": {JSON: {"schema": operation.error}}}
            known["headers"] = {
                **_REQUEST_ID,
                **(_RETRY_AFTER if status in (429, 503, 529) else {}),
            }
        known["description"] = f"{', '.join(f'`{code}`' for code in codes)}."
    return dict(sorted(found.items()))


def _refusals(operation: Operation, *, guarded: bool) -> dict[int, list[str]]:
    """The codes of the errors that an operation may answer, by status."""
    classes: list[type[CortexError]] = [*operation.refusals, *ANY]
    if guarded:
        classes = [errors.Unauthorized, errors.Forbidden, *classes]
    if operation.body is not None:
        classes = [*READING, *classes]
    found: dict[int, list[str]] = {}
    for cls in dict.fromkeys(classes):
        codes = found.setdefault(operation.status_of(cls("")), [])
        if cls.code is not None and cls.code not in codes:
            codes.append(cls.code)
    return found
