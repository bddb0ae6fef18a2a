"""Keys in a state directory, as `cortex keys add` would put them there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from cortex.gateway.auth import database
from cortex.gateway.auth.keys import Key, KeyStore


def add_key(directory: Path, name: str, **fields: Any) -> str:
    """The secret of a new key called *name*."""
    with closing(database.connect(directory)) as connection:
        _, secret = KeyStore(connection).add(Key("", name, **fields))
        return secret


def revoke_key(directory: Path, name: str) -> None:
    with closing(database.connect(directory)) as connection:
        KeyStore(connection).revoke(name)
