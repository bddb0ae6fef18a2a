"""Which library of kernels this process uses: found out once."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Mapping

from cortex.engine.kernels.native.build import BuildError, build
from cortex.engine.kernels.native.check import CheckFailed, check
from cortex.engine.kernels.native.library import Library

_log = logging.getLogger("cortex.engine")
_lock = threading.Lock()


def library() -> Library | None:
    """The kernels of this process, compiled where they are not in the cache; None for torch's.

    Takes seconds where it has to compile, and then only once. Any thread may ask.
    """
    with _lock:
        return _once()


@functools.cache
def _once() -> Library | None:
    return load(os.environ)


def load(environ: Mapping[str, str]) -> Library | None:
    """A checked library. None where ``CORTEX_NATIVE`` is 0, and, with one warning, where there is
    no compiler, or what it made does not load or computes wrongly."""
    if environ.get("CORTEX_NATIVE") == "0":
        return None
    try:
        found = Library(build(environ))
        check(found)
    except (BuildError, OSError, CheckFailed) as error:
        _log.warning("the CPU computes with torch's kernels, which are slower: %s", error)
        return None
    return found
