"""models.toml: what the fleet could serve, and under which names."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.config import values
from cortex.config.errors import Invalid, unknown
from cortex.config.structure import NOT_A_KEY
from cortex.config.values import Seconds

LIMIT_KEYS = ("context", "input", "output")  # tokens
COST_KEYS = ("input", "output", "cache_read", "cache_write")  # USD per million tokens
HARNESS = "torch"  # the one engine there is
CAPABILITIES = ("text", "vision", "image", "embedding")


def _limit(_: Any, field: attrs.Attribute[Any], value: dict[str, int] | None) -> None:
    for key, tokens in (value or {}).items():
        if key not in LIMIT_KEYS:
            raise Invalid(unknown("key", key, LIMIT_KEYS), f"{field.name}.{key}")
        if tokens < 1:
            raise Invalid(f"must be 1 or more, got {tokens}", f"{field.name}.{key}")


def _cost(_: Any, field: attrs.Attribute[Any], value: dict[str, float] | None) -> None:
    for key, price in (value or {}).items():
        if key not in COST_KEYS:
            raise Invalid(unknown("key", key, COST_KEYS), f"{field.name}.{key}")
        if price < 0:
            raise Invalid(f"must be 0 or more, got {price:g}", f"{field.name}.{key}")


def _capabilities(_: Any, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for index, word in enumerate(value):
        if word not in CAPABILITIES:
            raise Invalid(unknown("capability", word, CAPABILITIES), f"{field.name}[{index}]")


@attrs.frozen
class CatalogueEntry:
    """A model the fleet may load. What is None is left to the neuron, or not known."""

    id: str = attrs.field(validator=values.model_id)
    source: str | None = None
    harness: str | None = attrs.field(default=None, validator=values.one_of(HARNESS))
    quant: str | None = None
    vram_mb: int | None = attrs.field(default=None, validator=values.at_least(0))
    min_devices: int = attrs.field(default=1, validator=values.at_least(1))
    min_device_vram_mb: int | None = attrs.field(default=None, validator=values.at_least(0))
    pinned_on: tuple[str, ...] = ()
    residency_priority: int | None = attrs.field(default=None, validator=values.at_least(0))
    context: int | None = attrs.field(default=None, validator=values.at_least(1))
    keep_alive: Seconds | None = None
    tensor_parallel: int | None = attrs.field(default=None, validator=values.at_least(1))
    tool_format: str | None = None
    capabilities: tuple[str, ...] = attrs.field(default=(), validator=_capabilities)
    limit: dict[str, int] | None = attrs.field(default=None, validator=_limit)
    cost: dict[str, float] | None = attrs.field(default=None, validator=_cost)


def _by_id(models: Any) -> dict[str, CatalogueEntry]:
    """The entries by their ids; a second entry of one id is an error."""
    if isinstance(models, dict):
        return models
    entries: dict[str, CatalogueEntry] = {}
    for index, entry in enumerate(models):
        if entry.id in entries:
            raise Invalid(f"a model {entry.id!r} is listed before", f"models[{index}].id")
        entries[entry.id] = entry
    return entries


@attrs.frozen
class Catalogue:
    """Models by id, and other names for them. An alias is resolved in one hop."""

    models: dict[str, CatalogueEntry] = attrs.field(factory=dict, converter=_by_id)
    aliases: dict[str, str] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = attrs.field(default=(), metadata=NOT_A_KEY)

    @aliases.validator
    def _resolvable(self, field: attrs.Attribute[Any], aliases: dict[str, str]) -> None:
        for alias, target in aliases.items():
            path = f'aliases."{alias}"'
            if alias in self.models:
                raise Invalid("a model has this id, so it cannot be an alias too", path)
            if target in aliases:
                raise Invalid(f"{target!r} is an alias itself; name the model", path)
            if target not in self.models:
                raise Invalid(unknown(f"model {target!r}", target, self.models), path)


@attrs.frozen
class CatalogueFile:
    """The two tables of models.toml as they are written."""

    models: tuple[CatalogueEntry, ...] = ()
    aliases: dict[str, str] = attrs.field(factory=dict)
