"""What the tests of packages share: an archive takes half a minute to build."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import zipapp


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slim cortex.pyz, of the commit `zipapp.COMMIT`. Do not change it or what lies beside."""
    return zipapp.build_slim(tmp_path_factory.mktemp("slim"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests unpack `slim`, so that it is done once."""
    return tmp_path_factory.mktemp("shiv")
