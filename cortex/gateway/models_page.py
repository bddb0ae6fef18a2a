"""The list of models as each family of clients asks for it (`reference/api.md` 2.3, 3.7). Pure.

One body serves OpenAI's and Anthropic's clients; Anthropic's page it and want no list of words
under ``capabilities``, Claude Code takes only names that look like its vendor's, and Codex wants a
member ``models``, which stays empty: what it would read there replaces its own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cortex.errors import BadRequest, clip
from cortex.gateway.catalogue import DISCOVERY

MAX_LIMIT = 1000
_VENDORS_OWN = re.compile("claude|anthropic", re.IGNORECASE)

Json = dict[str, Any]
Allowed = Callable[..., bool]  # whether a caller may use the model that has these names


def listing(
    entries: Iterable[Json], query: Mapping[str, str], allowed: Allowed, *, anthropic: bool
) -> Json:
    """The body of ``/v1/models``: those of *entries* that are *allowed*, and of these the page
    that ``limit``, ``after_id`` and ``before_id`` of *query* ask for. `BadRequest` where they ask
    for none."""
    found = [entry for entry in entries if allowed(entry["id"], entry.get("alias_of", entry["id"]))]
    if anthropic:
        found = [*map(for_anthropic, found), *_discovered(found)]
    page, more = _page(found, query)
    body = {
        "object": "list",
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
    if "client_version" in query:
        body["models"] = []
    return body


def for_anthropic(entry: Json) -> Json:
    """*entry* without what Anthropic's clients read otherwise."""
    return {**entry, "capabilities": None}


def _discovered(entries: Iterable[Json]) -> list[Json]:
    """*entries* under names that Claude Code offers its user. Who may use one may use the other."""
    found: list[Json] = []
    for entry in entries:
        name, target = DISCOVERY + entry["id"], entry.get("alias_of", entry["id"])
        if not _VENDORS_OWN.search(entry["id"]):
            told = {"id": name, "display_name": entry["id"], "alias_of": target}
            found.append({**for_anthropic(entry), **told})
    return found


def _page(entries: list[Json], query: Mapping[str, str]) -> tuple[list[Json], bool]:
    """The entries that were asked for, and whether there are more in the same direction."""
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise BadRequest("after_id and before_id exclude each other", param="before_id")
    if before:
        rest = entries[: _place(entries, before, "before_id")]
        page = rest[-limit:] if limit else rest
    else:
        rest = entries[_place(entries, after, "after_id") + 1 :] if after else entries
        page = rest[:limit] if limit else rest
    return page, len(page) < len(rest)


def _limit(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit()) or len(given) > 9 or int(given) < 1:
        raise BadRequest("limit must be a whole number of 1 or more", param="limit")
    return min(int(given), MAX_LIMIT)


def _place(entries: list[Json], wanted: str, name: str) -> int:
    for index, entry in enumerate(entries):
        if entry["id"] == wanted:
            return index
    raise BadRequest(f"no model '{clip(wanted)}' is listed", param=name)
