"""Which handler a method and a path lead to. Paths are matched as decoded, never redirected."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from cortex.errors import CortexError, MethodNotAllowed, NotFound, clip
from cortex.service.http import Route

_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


def _compile(path: str) -> re.Pattern[str]:
    pattern, last = "", 0
    for match in _PARAMETER.finditer(path):
        inner = r".+?" if match.group(2) else r"[^/]+"
        pattern += re.escape(path[last : match.start()]) + f"(?P<{match.group(1)}>{inner})"
        last = match.end()
    return re.compile(pattern + re.escape(path[last:]), re.DOTALL)


@attrs.frozen(eq=False)
class Match:
    route: Route
    params: dict[str, str]


class RouteTable:
    """Literal paths first, then patterns in the order given. HEAD is served by GET routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._literal: dict[str, dict[str, Route]] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, Route]]] = {}
        for route in routes:
            if "{" in route.path:
                entry = self._patterns.setdefault(route.path, (_compile(route.path), {}))
                methods = entry[1]
            else:
                methods = self._literal.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is routed twice")
            methods[route.method] = route

    def find(self, method: str, path: str) -> Match | CortexError:
        """The route for *method* on *path*, or the 404 or 405 that is the answer."""
        methods, params = self._methods(path)
        if methods is None:
            return NotFound(f"no route {clip(path)}")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted(_allowed(methods))
            return MethodNotAllowed(
                f"{clip(path)} takes {', '.join(allowed)}", extras={"allow": allowed}
            )
        return Match(route, params)

    def methods(self, path: str) -> frozenset[str] | CortexError:
        """The methods that *path* takes, or the 404 that is the answer."""
        methods, _ = self._methods(path)
        return NotFound(f"no route {clip(path)}") if methods is None else _allowed(methods)

    def any_route(self, path: str) -> Route | None:
        """Some route on *path*, for its error renderer."""
        methods, _ = self._methods(path)
        return next(iter(methods.values())) if methods else None

    def _methods(self, path: str) -> tuple[dict[str, Route] | None, dict[str, str]]:
        literal = self._literal.get(path)
        if literal is not None:
            return literal, {}
        for pattern, methods in self._patterns.values():
            match = pattern.fullmatch(path)
            if match:
                return methods, match.groupdict()
        return None, {}


def _allowed(methods: Iterable[str]) -> frozenset[str]:
    found = frozenset(methods)
    return found | ({"HEAD"} if "GET" in found else set())
