"""Who a browser says is asking: the page that a request came from."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def is_foreign_page(headers: Mapping[str, str]) -> bool:
    """Whether a web page of another machine sent this, or one that hides where it is from.

    Such a page cannot read the answer, but it can send orders to whatever its reader's machine can
    reach, as text/plain even without asking first. No browser lets it choose its Origin, and under
    a name that it makes point here (DNS rebinding) the Origin is that name. Programs send none;
    what is not http (an editor's panel, an extension) was installed by somebody.
    """
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        url = urlsplit(origin)
        host = url.hostname
    except ValueError:
        return True
    return url.scheme in ("http", "https", "") and host not in LOOPBACK_HOSTS
