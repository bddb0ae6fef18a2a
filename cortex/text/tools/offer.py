"""The tools that a request offers to the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs

Schema = Mapping[str, Any]


@attrs.frozen
class Offer:
    """Names of tools and the JSON schemas of their parameters. ``exclusive``: a call of any other
    name is text; else it is told, since a client can tell the model that there is no such tool."""

    schemas: Mapping[str, Schema] = attrs.field(factory=dict)
    exclusive: bool = False

    @classmethod
    def of(cls, tools: Iterable[Mapping[str, Any]], *, exclusive: bool = False) -> Self:
        """*tools* in OpenAI's shape; what is no function is left out."""
        schemas: dict[str, Schema] = {}
        for tool in tools:
            function = tool.get("function")
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                schema = function.get("parameters")
                schemas[function["name"]] = schema if isinstance(schema, Mapping) else {}
        return cls(schemas, exclusive)

    def takes(self, name: str) -> bool:
        """Whether a call of *name* is one."""
        return name in self.schemas or not self.exclusive

    def schema(self, tool: str, parameter: str) -> tuple[Any, Schema]:
        """The schema of *parameter*, None where there is none, and the one its references are
        resolved in."""
        root = self.schemas.get(tool, {})
        properties = root.get("properties")
        return properties.get(parameter) if isinstance(properties, Mapping) else None, root
