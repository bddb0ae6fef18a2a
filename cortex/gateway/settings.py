"""The settings in force: one holder, swapped as a whole, read wherever they are used.

What `LiveSettings` hands out looks like the frozen tables of the configuration, but each read of a
field gives the value that holds now. Owners keep the table and never a value of it; then a reload
takes effect everywhere at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from cortex.config.gateway import EvictionSettings, GatewayConfig, GatewaySettings


class LiveSettings:
    """Owner of the configuration in force."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._followers: list[Callable[[GatewaySettings], None]] = []
        self.gateway = cast("GatewaySettings", _Table(self, "gateway"))
        self.eviction = cast("EvictionSettings", _Table(self, "eviction"))

    @property
    def config(self) -> GatewayConfig:
        return self._config

    def swap(self, config: GatewayConfig) -> None:
        """From here on *config* is in force."""
        self._config = config
        for take in self._followers:
            take(config.gateway)

    def follow(self, take: Callable[[GatewaySettings], None]) -> None:
        """Call *take* now and after each swap: for owners that must have values of their own."""
        self._followers.append(take)
        take(self._config.gateway)


class _Table:
    """One table of the configuration, as it is at the time of each read."""

    __slots__ = ("_name", "_settings")

    def __init__(self, settings: LiveSettings, name: str) -> None:
        self._settings = settings
        self._name = name

    def __getattr__(self, field: str) -> Any:
        return getattr(getattr(self._settings.config, self._name), field)
