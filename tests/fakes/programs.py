"""Programs of the system that some tests drive: rpmbuild, prometheus, nginx and their like."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test for a person whose machine lacks something; in CI, which brings it, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI skips nothing")
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of the program *name*; without it the test is `unavailable`."""
    # Debian keeps what administers a system where an ordinary user's PATH does not look.
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    return path if path is not None else unavailable(f"{name} is not installed")


def root() -> None:
    """What follows needs root's rights (namespaces, mounts)."""
    if os.geteuid() != 0:
        unavailable("this needs root")
