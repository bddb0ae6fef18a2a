"""What web pages of other origins are told they may do (CORS): pure.

A browser sends such a page's request by itself only where it could not tell a form's from it; all
others it asks for first, with a preflight, and it lets no page read an answer that does not name
the page's origin. Credentials that a browser keeps are never allowed: a page brings its own key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

PREFLIGHT_SECONDS = "600"  # that a browser may keep a leave; answers are judged each time

# What clients of the API send. Those that are not here a browser does not let a page send.
_ASKABLE = frozenset(
    {"accept", "authorization", "content-encoding", "content-type", "idempotency-key", "user-agent"}
    | {"anthropic-beta", "anthropic-dangerous-direct-browser-access", "anthropic-version"}
    | {"openai-beta", "openai-organization", "openai-project", "x-api-key", "x-request-id"}
    | {"x-session-id", "x-claude-code-session-id", "x-litellm-session-id", "x-olla-session-id"}
)
_ASKABLE_PREFIX = "x-stainless-"  # both official SDKs describe themselves in these, and retries
_EXPOSED = ("request-id", "retry-after", "x-request-id", "x-should-retry")
_EXPOSED_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")

Headers = dict[str, str]


@attrs.frozen(eq=False)
class Cors:
    """``origins`` gives those that are allowed now, as browsers write them; none: nothing is said
    at all, to anybody."""

    origins: Callable[[], tuple[str, ...]]

    @property
    def on(self) -> bool:
        return bool(self.origins())

    def preflight(self, asked: Mapping[str, str], methods: Iterable[str]) -> Headers:
        """Headers for the answer to an OPTIONS with the headers *asked*, on a path that takes
        *methods*, beside `headers`."""
        if "access-control-request-method" not in asked or not self._allowed(asked):
            return {}
        names = asked.get("access-control-request-headers", "").lower().split(",")
        found = {name.strip() for name in names}
        allowed = sorted(name for name in found if _askable(name))
        told = {
            "access-control-allow-methods": ", ".join(sorted(methods)),
            "access-control-max-age": PREFLIGHT_SECONDS,
        }
        return told | ({"access-control-allow-headers": ", ".join(allowed)} if allowed else {})

    def headers(self, asked: Mapping[str, str], answered: Mapping[str, str]) -> Headers:
        """Headers to add to those *answered* to a request with the headers *asked*.

        A cache must not give one origin what was said to another, or to none: ``vary`` is there
        whoever asks.
        """
        told = {"vary": "origin"}
        if self._allowed(asked):
            told["access-control-allow-origin"] = asked["origin"]
            exposed = [name for name in answered if name.startswith(_EXPOSED_PREFIXES)]
            told["access-control-expose-headers"] = ", ".join((*_EXPOSED, *exposed))
        return told

    def _allowed(self, asked: Mapping[str, str]) -> bool:
        return asked.get("origin") in self.origins()


def _askable(name: str) -> bool:
    return name in _ASKABLE or name.startswith(_ASKABLE_PREFIX)
