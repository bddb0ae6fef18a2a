"""What a new configuration would change: a pure comparison of two, and of what is loaded.

Settings that only a restart can change are told as such and stay as they are in the configuration
that is applied, so that they are told again the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import GatewayConfig
from cortex.config.structure import NOT_A_KEY
from cortex.gateway.membership import FleetChange, compare

Json = dict[str, Any]

# Keys of [gateway] that take effect at once; the others are read when the gateway starts.
LIVE_GATEWAY = frozenset(
    {
        "keepalive_seconds",
        "commit_after_seconds",
        "queue_wait_seconds",
        "load_wait_seconds",
        "queue_depth",
        "stall_seconds",
        "poll_seconds",
        "readiness_seconds",
        "cors_origins",
    }
)
# Take effect at once while both configurations have them: what changes is the certificate.
# Whether the port speaks TLS at all is decided at the start.
CERTIFICATE = frozenset({"tls_certificate", "tls_key"})
LIVE_TABLES = frozenset({"eviction", "auth", "usage"})  # wholly
# What a neuron was told when it loaded a model: a change of these means loading it again.
LOADED_BY = ("source", "harness", "quant", "context", "tensor_parallel", "tool_format")


@attrs.frozen
class Configuration:
    """Both files as they were read together."""

    config: GatewayConfig
    catalogue: Catalogue


@attrs.frozen
class SettingChange:
    key: str  # its path: ``gateway.queue_depth``
    before: Any
    after: Any
    live: bool  # else it needs a restart


@attrs.frozen
class TableChange:
    """Names of models, or of aliases."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@attrs.frozen
class Resident:
    """A model on a node; ``ours`` when this gateway has loaded it."""

    node: str
    model: str
    ours: bool


@attrs.frozen
class Drain:
    """A resident that is unloaded once its requests are done, and loaded again if ``reload``."""

    node: str
    model: str
    why: str
    reload: bool


@attrs.frozen
class Plan:
    settings: tuple[SettingChange, ...]
    nodes: FleetChange
    models: TableChange
    aliases: TableChange
    keep: tuple[Resident, ...]
    drain: tuple[Drain, ...]
    warnings: tuple[str, ...] = ()

    @property
    def restart(self) -> tuple[str, ...]:
        """The changed keys that only a restart puts in force."""
        return tuple(change.key for change in self.settings if not change.live)

    @property
    def empty(self) -> bool:
        changes = (self.nodes, self.models, self.aliases)
        moved = any(change.added or change.removed or change.changed for change in changes)
        return not (moved or self.settings or self.drain)

    def body(self) -> Json:
        """The plan as JSON; ``settings`` has no secrets, since no key of one is compared here."""
        return {
            "settings": [
                {
                    "key": change.key,
                    "before": _plain(change.before),
                    "after": _plain(change.after),
                    "needs_restart": not change.live,
                }
                for change in self.settings
            ],
            "nodes": {**_lists(self.nodes), "drain": list(self.nodes.removed)},
            "models": {
                **_lists(self.models),
                "keep": [{"node": each.node, "model": each.model} for each in self.keep],
                "drain": [
                    {"node": each.node, "model": each.model, "why": each.why} for each in self.drain
                ],
                "load": [
                    {"node": each.node, "model": each.model} for each in self.drain if each.reload
                ],
            },
            "aliases": _lists(self.aliases),
            "needs_restart": list(self.restart),
            "warnings": list(self.warnings),
        }


def make_plan(before: Configuration, after: Configuration, residents: Iterable[Resident]) -> Plan:
    """What becomes of everything when *after* replaces *before*."""
    nodes = compare(before.config.neurons, after.config.neurons)
    keep, drain = _residents(before.catalogue, after.catalogue, nodes, residents)
    return Plan(
        settings=tuple(_settings(before.config, after.config)),
        nodes=nodes,
        models=_table(before.catalogue.models, after.catalogue.models),
        aliases=_table(before.catalogue.aliases, after.catalogue.aliases),
        keep=keep,
        drain=drain,
        warnings=(*after.config.warnings, *after.catalogue.warnings),
    )


def in_force(running: GatewayConfig, read: GatewayConfig) -> GatewayConfig:
    """*read*, with the settings that need a restart as they are in *running*."""
    tables: dict[str, Any] = {}
    for name in _tables(read):
        old, new = getattr(running, name), getattr(read, name)
        stay = {
            key: getattr(old, key)
            for key in _keys(new)
            if not _is_live(name, key, getattr(old, key), getattr(new, key))
        }
        tables[name] = attrs.evolve(new, **stay)
    return attrs.evolve(read, **tables)


def _settings(before: GatewayConfig, after: GatewayConfig) -> Iterable[SettingChange]:
    for name in _tables(after):
        old, new = getattr(before, name), getattr(after, name)
        for key in _keys(new):
            before_key, after_key = getattr(old, key), getattr(new, key)
            if before_key != after_key:
                live = _is_live(name, key, before_key, after_key)
                yield SettingChange(f"{name}.{key}", before_key, after_key, live)


def _tables(config: GatewayConfig) -> list[str]:
    """The names of the tables of settings in cortex.toml; the nodes are no such table."""
    fields = attrs.fields(type(config))
    return [field.name for field in fields if attrs.has(type(getattr(config, field.name)))]


def _keys(table: Any) -> list[str]:
    return [field.name for field in attrs.fields(type(table)) if field.metadata != NOT_A_KEY]


def _is_live(table: str, key: str, before: Any, after: Any) -> bool:
    """Whether a change of *key* from *before* to *after* takes effect without a restart."""
    if table == "gateway" and key in CERTIFICATE:
        return before is not None and after is not None
    return table in LIVE_TABLES or (table == "gateway" and key in LIVE_GATEWAY)


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> TableChange:
    return TableChange(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and before[name] != after[name]),
    )


def _residents(
    before: Catalogue, after: Catalogue, nodes: FleetChange, residents: Iterable[Resident]
) -> tuple[tuple[Resident, ...], tuple[Drain, ...]]:
    keep: list[Resident] = []
    drain: list[Drain] = []
    for resident in residents:
        if resident.node in nodes.removed:
            continue  # its node takes no more requests; what it holds is its own affair
        old, new = before.models.get(resident.model), after.models.get(resident.model)
        why = _why_drained(old, new, resident)
        if why is None:
            keep.append(resident)
        else:
            stays = new is not None and _may_run(new, resident.node)
            drain.append(Drain(resident.node, resident.model, why, reload=stays))
    return tuple(keep), tuple(drain)


def _why_drained(
    old: CatalogueEntry | None, new: CatalogueEntry | None, resident: Resident
) -> str | None:
    """Why *resident* cannot stay as it is. What this gateway has not loaded always does."""
    if not resident.ours or old is None or old == new:
        return None
    if new is None:
        return "the catalogue has it no more"
    if not _may_run(new, resident.node):
        return "pinned_on names other nodes"
    changed = [key for key in LOADED_BY if getattr(old, key) != getattr(new, key)]
    return f"{', '.join(changed)} changed" if changed else None


def _may_run(entry: CatalogueEntry, node: str) -> bool:
    return not entry.pinned_on or node in entry.pinned_on


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _lists(change: FleetChange | TableChange) -> Json:
    return {name: list(names) for name, names in attrs.asdict(change).items()}


ReadFiles = Callable[[], Configuration]  # raises ConfigError
