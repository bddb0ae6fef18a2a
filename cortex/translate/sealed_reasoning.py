"""Reasoning as the opaque text that a client carries from one turn to the next.

A client that has nothing stored here sends its whole history, of which it keeps the reasoning as
``encrypted_content`` alone. What is sealed is the text the client was shown beside it, so there is
no secret in it; the checksum tells our seals from other vendors' and from damaged ones.
"""

from __future__ import annotations

import base64
import hashlib

import orjson

_VERSION = "cx1."
_SALT = b"cortex sealed reasoning 1"


def seal(text: str) -> str:
    """*text* as URL-safe ASCII that `unseal` reads."""
    body = orjson.dumps({"check": _check(text), "text": text})
    return _VERSION + base64.urlsafe_b64encode(body).decode()


def unseal(sealed: str) -> str | None:
    """The text in *sealed*; None when it is not one of ours, whole and unaltered."""
    if not sealed.startswith(_VERSION):
        return None
    try:
        body = orjson.loads(base64.urlsafe_b64decode(sealed.removeprefix(_VERSION)))
    except ValueError:  # of the alphabet, the padding or the JSON
        return None
    text = body.get("text") if isinstance(body, dict) else None
    if not isinstance(text, str) or body.get("check") != _check(text):
        return None
    return text


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode(), key=_SALT, digest_size=8).hexdigest()
