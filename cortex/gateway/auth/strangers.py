"""Callers without a key: whether they are served, and on what terms, as is configured now."""

from __future__ import annotations

import attrs

from cortex.config.accounts import AuthSettings
from cortex.gateway.auth.caller import ANONYMOUS, Caller
from cortex.gateway.auth.limits import Limits


@attrs.define(eq=False)
class Strangers:
    """The one holder of that. ``welcome`` None leaves it to the guard."""

    welcome: bool | None = None
    caller: Caller = ANONYMOUS
    limits: Limits = attrs.field(factory=Limits)

    def retune(self, settings: AuthSettings) -> None:
        """From here on *settings* hold."""
        self.welcome = settings.anonymous
        self.caller = attrs.evolve(
            ANONYMOUS,
            models=settings.anonymous_models,
            priority=settings.anonymous_priority,
        )
        self.limits = Limits(settings.anonymous_rpm, settings.anonymous_tpm)
