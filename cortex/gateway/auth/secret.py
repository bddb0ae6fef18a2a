"""API keys as clients send them: made, recognised by their hash, found in a request's headers.

A key is ``ctx-<id>-<secret>``: the id names it in lists and logs, the secret is 32 URL-safe
characters, 192 bits from the operating system. What is stored is the SHA-256 of the whole. A slow
or salted hash (argon2, scrypt) protects what people choose, since that can be guessed; 192 random
bits cannot, whatever a guess costs, and a request pays for the hash. The hash is looked up in a
table, so that how long a wrong key takes tells nothing of any right one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping

from cortex.errors import Unauthorized

PREFIX = "ctx-"
MAX_LENGTH = 512  # characters of a credential; a client's own dummy may be longer than ours

_VISIBLE = re.compile(r"[!-~]+")


def generate() -> tuple[str, str]:
    """A new key: its public id and the whole of it."""
    key_id = secrets.token_hex(4)
    return key_id, f"{PREFIX}{key_id}-{secrets.token_urlsafe(24)}"


def digest(key: str) -> bytes:
    """What is stored of *key*."""
    return hashlib.sha256(key.encode()).digest()


def presented(headers: Mapping[str, str]) -> str | None:
    """The key in *headers*, or None. ``x-api-key`` counts where ``authorization`` has another.

    `Unauthorized` for what can be no key: no bearer, nothing after the scheme, two of them, other
    than visible ASCII, or too long.
    """
    given = headers.get("x-api-key")
    if not given:
        authorization = headers.get("authorization")
        if authorization is None:
            return None
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the authorization header must be a bearer: 'Bearer KEY'")
        given = rest.strip(" ")
    if len(given) > MAX_LENGTH or not _VISIBLE.fullmatch(given):
        raise Unauthorized("what was sent as the API key can be none")
    return given
