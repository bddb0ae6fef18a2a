"""Which scope a gateway's route needs: one table for all of them, by path."""

from __future__ import annotations

import attrs

from cortex.gateway.auth.caller import ADMIN, INFERENCE, PUBLIC
from cortex.service.http import Route

# What a load balancer, a probe or a person asks before there is a key; they name no model.
PUBLIC_PATHS = frozenset({"/", "/health", "/livez", "/readyz", "/version", "/openapi.json"})
ADMIN_PREFIX = "/fleet"


def scope_of(path: str) -> str:
    """The scope of a route's *path*. What is in no list needs the right to use models."""
    if path in PUBLIC_PATHS:
        return PUBLIC
    if path == ADMIN_PREFIX or path.startswith(f"{ADMIN_PREFIX}/"):
        return ADMIN
    return INFERENCE


def scoped(route: Route) -> Route:
    """*route* with the scope of its path."""
    return attrs.evolve(route, scope=scope_of(route.path))
