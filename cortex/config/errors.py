"""What is wrong with a configuration, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """One line that names the file (or variable), the key path and what is wrong with it."""


class Invalid(ValueError):
    """A value that is not what its key takes.

    ``path`` grows while the error climbs out of the tables it lies in (``neurons[1].endpoint``).
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def within(self, step: str) -> Invalid:
        """The same error, seen from the table or array that holds *step*."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        return Invalid(self.message, f"{step}{joint}{self.path}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name among *known* that *name* was probably meant to be."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    found += [other for other in names if name in other.split("_")]  # "id" for "model_id"
    return found[0] if found else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A message about *name*, with the name it was probably meant to be, or all there are."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {what} ({hint})"
