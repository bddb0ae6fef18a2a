"""A role's OpenAPI document as the law that its answers are held to."""

from __future__ import annotations

import copy
from typing import Any

import attrs
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_URI = "urn:document"


def closed(schema: Any) -> Any:
    """*schema* with all members of its objects told: what it does not name is wrong."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


@attrs.frozen(eq=False)
class Described:
    """*document* as it is served."""

    document: dict[str, Any]
    _registry: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        everything = {"components": closed(self.document["components"])}
        resource = Resource.from_contents(everything, default_specification=DRAFT202012)
        object.__setattr__(self, "_registry", Registry().with_resource(_URI, resource))

    def operations(self) -> set[tuple[str, str]]:
        paths = self.document["paths"]
        return {(method.upper(), path) for path, each in paths.items() for method in each}

    def operation(self, method: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.document["paths"][path][method.lower()]
        return found

    def example(self, method: str, path: str) -> dict[str, Any]:
        body = self.operation(method, path)["requestBody"]
        found: dict[str, Any] = body["content"]["application/json"]["example"]
        return copy.deepcopy(found)

    def check(self, schema: dict[str, Any], value: Any) -> None:
        """Fail unless *value* is what *schema* says, and nothing more."""
        based = _based(closed(schema))
        errors = sorted(
            Draft202012Validator(based, registry=self._registry).iter_errors(value),
            key=lambda error: len(error.path),
        )
        assert not errors, [f"{list(e.path)}: {e.message[:300]}" for e in errors[:3]]

    def check_answer(self, method: str, path: str, status: int, value: Any) -> None:
        """Fail unless a JSON answer of that status is documented, and as it is documented."""
        responses = self.operation(method, path)["responses"]
        assert str(status) in responses, f"{method} {path} may not answer {status}: {value}"
        self.check(responses[str(status)]["content"]["application/json"]["schema"], value)

    def check_event(self, method: str, path: str, value: Any) -> None:
        content = self.operation(method, path)["responses"]["200"]["content"]
        self.check(content["text/event-stream"]["x-event-schema"], value)


def _based(schema: Any) -> Any:
    """*schema* with its references led to the document."""
    if isinstance(schema, list):
        return [_based(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _based(value) for key, value in schema.items()}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = _URI + found["$ref"]
    return found
