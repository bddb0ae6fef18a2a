"""Who asks: what the gateway knows of the key (or the lack of one) behind a request."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

import attrs

PUBLIC: Final = "public"  # scopes: what a route needs, and what a key may do
INFERENCE: Final = "inference"
ADMIN: Final = "admin"

INTERACTIVE: Final = "interactive"
NORMAL: Final = "normal"
BATCH: Final = "batch"
PRIORITIES: Final = (INTERACTIVE, NORMAL, BATCH)  # served in this order


@attrs.frozen
class Caller:
    """One key's rights, or those of callers without one.

    ``name`` is a label (in metrics, logs and the neuron's fair share), never the secret.
    ``models`` are ids, aliases or patterns with ``*``; empty means every model. ``salt`` parts
    this caller's prefix cache from the others'.
    """

    name: str
    key_id: str | None = None
    scopes: frozenset[str] = frozenset({INFERENCE})
    models: tuple[str, ...] = ()
    priority: str = NORMAL
    salt: str = ""

    def may_use(self, *names: str) -> bool:
        """Whether this caller may use the model that is called *names*: its id, or the alias that
        was asked for. One that is allowed is enough."""
        if not self.models:
            return True
        return any(fnmatchcase(name, pattern) for pattern in self.models for name in names)


ANONYMOUS = Caller("anonymous")
