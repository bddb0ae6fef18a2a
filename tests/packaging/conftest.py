"""What the tests of packages share: an archive takes half a minute to build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import package_files, zipapp
from fakes.throwaway_root import ThrowawayRoot


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slim cortex.pyz, of the commit `zipapp.COMMIT`. Do not change it or what lies beside."""
    return zipapp.build_slim(tmp_path_factory.mktemp("slim"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests unpack `slim`, so that it is done once."""
    return tmp_path_factory.mktemp("shiv")


@pytest.fixture(scope="session")
def gateway_deb(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = package_files.build(tmp_path_factory.mktemp("deb"), "deb", "--zipapp", slim)
    return path


@pytest.fixture(scope="session")
def gateway_rpm(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = package_files.build(tmp_path_factory.mktemp("rpm"), "rpm", "--zipapp", slim)
    return path


@pytest.fixture(scope="module")
def throwaway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayRoot]:
    with ThrowawayRoot(tmp_path_factory.mktemp("root")) as own:
        yield own
