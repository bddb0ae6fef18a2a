"""cortex.toml: who may use the gateway without a key, and what is kept of the use."""

from __future__ import annotations

import attrs

from cortex.config import values

PRIORITIES = ("interactive", "normal", "batch")


@attrs.frozen
class AuthSettings:
    """``anonymous`` is whether requests without a key are served; None means while there is no
    key and only this machine reaches the API. The others bound all such callers together."""

    anonymous: bool | None = None
    anonymous_models: tuple[str, ...] = ()
    anonymous_priority: str = attrs.field(default="normal", validator=values.one_of(*PRIORITIES))
    anonymous_rpm: int | None = attrs.field(default=None, validator=values.at_least(1))
    anonymous_tpm: int | None = attrs.field(default=None, validator=values.at_least(1))


@attrs.frozen
class UsageSettings:
    request_log: bool = False  # a row for each request, besides the sums a day
    request_log_days: int = attrs.field(default=30, validator=values.at_least(1, 36500))
