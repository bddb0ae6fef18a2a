"""The kernels as this machine's compiler makes them, for each of the variants it can run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortex.engine.kernels.native.build import BuildError, build, compiler_of
from cortex.engine.kernels.native.library import Library

# What turns variants off, so that each that the processor has is built, the best one first.
VARIANTS = {
    "best": (),
    "no-avx512": ("-O1", "-DCORTEX_NO_AVX512"),
    "no-vnni": ("-O1", "-DCORTEX_NO_AVX512", "-DCORTEX_NO_VNNI"),
    "plain": ("-O1", "-DCORTEX_NO_AVX512", "-DCORTEX_NO_AVX2", "-DCORTEX_NO_NEON"),
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        compiler_of(os.environ)
    except BuildError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("cache")


PARAMETERS = [
    name if name == "best" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS
]


@pytest.fixture(scope="session", params=PARAMETERS)
def library(request: pytest.FixtureRequest, cache: Path) -> Library:
    """Slow ones take seconds to compile, once."""
    environ = {**os.environ, "CORTEX_CACHE_DIR": str(cache)}
    return Library(build(environ, flags=VARIANTS[request.param]))
