"""The keys of the original's files, and what becomes of each: one table a file.

A key is moved to where it lives now, given today's value, or dropped with a reason. What is dropped
or renamed is warned about, except where today's behaviour is the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from cortex.config.errors import Invalid

Table = dict[str, Any]


@attrs.frozen
class Moved:
    """A key that lives elsewhere now. ``hint`` is the warning; None where none is due."""

    old: str
    new: str
    hint: str | None = None


@attrs.frozen
class Valued:
    """A key whose values have other names now; ``[]`` in the path stands for every item."""

    path: str
    values: dict[str, str]


@attrs.frozen
class Dropped:
    """A key that is ignored. ``silent_for`` says which values need no warning."""

    path: str
    reason: str
    silent_for: Callable[[Any], bool] = lambda _: False


Rule = Moved | Valued | Dropped

# The original's only inference engine; there is one here too, and this is its name.
_HARNESSES = {"candle": "torch"}


def _names_one_engine(value: Any) -> bool:
    entries = value if isinstance(value, list) else []
    return bool(entries) and all(
        isinstance(e, dict) and e.get("name") in ("candle", "torch") for e in entries
    )


GATEWAY: tuple[Rule, ...] = (
    Moved("nodes", "neurons", "[[nodes]] is called [[neurons]] now; rename it"),
    Dropped("entitlements", "no API keys are read from here: requests are NOT authenticated by it"),
    Dropped("upstream", "there is no upstream for keys and metering"),
)

CATALOGUE: tuple[Rule, ...] = (Valued("models[].harness", _HARNESSES),)

NEURON: tuple[Rule, ...] = (
    Valued("default_models[].harness", _HARNESSES),
    Dropped("harnesses", "there is one engine, torch", silent_for=_names_one_engine),
    Moved("harness.candle.hf_cache", "hf_cache"),
    Moved("harness.candle.sources.huggingface.endpoint", "hub_endpoint"),
    Moved("harness.candle.admission.max_queue_depth", "max_queue_depth"),
    Dropped(
        "harness.candle.default_source",
        "models come from Hugging Face or a folder",
        silent_for=lambda value: value == "huggingface",
    ),
    Dropped("harness.candle.sources", "the one hub's address is the key hub_endpoint"),
    Dropped("harness.candle.prefix_cache", "the prefix cache uses what the KV cache has free"),
    Dropped("harness.candle.context_limit", "a model's limit follows from its memory; see context"),
    Dropped("harness.candle.admission", "only max_queue_depth is kept; batches form by themselves"),
    Dropped("harness.candle.image", "images are not generated"),
    Dropped("harness", "there is one engine, torch"),
)


def translate(table: Table, rules: tuple[Rule, ...]) -> list[str]:
    """Bring *table* to today's keys in place and say what was dropped or renamed.

    `Invalid` when a key is there under both its names.
    """
    warnings: list[str] = []
    for rule in rules:
        if isinstance(rule, Moved):
            warnings += _move(table, rule)
        elif isinstance(rule, Valued):
            _revalue(table, rule)
        else:
            warnings += _drop(table, rule)
    return warnings


def _move(table: Table, rule: Moved) -> list[str]:
    found, value = _take(table, rule.old)
    if not found:
        return []
    if rule.new in table:
        raise Invalid(f"is here as {rule.new} too; keep that one", rule.old)
    table[rule.new] = value
    return [rule.hint] if rule.hint else []


def _revalue(table: Table, rule: Valued) -> None:
    array, _, key = rule.path.partition("[].")
    items = table.get(array)
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and isinstance(item.get(key), str):
            item[key] = rule.values.get(item[key], item[key])


def _drop(table: Table, rule: Dropped) -> list[str]:
    found, value = _take(table, rule.path)
    if not found or rule.silent_for(value):
        return []
    return [f"{rule.path} is ignored: {rule.reason}"]


def _take(table: Table, path: str) -> tuple[bool, Any]:
    """Remove the value at *path*, and the tables above it that are empty then."""
    *above, last = path.split(".")
    tables = [table]
    for key in above:
        inner = tables[-1].get(key)
        if type(inner) is not dict:
            return False, None
        tables.append(inner)
    if last not in tables[-1]:
        return False, None
    value = tables[-1].pop(last)
    for index in range(len(above), 0, -1):
        if not tables[index]:
            del tables[index - 1][above[index - 1]]
    return True, value
