"""Building with compilers that are missing, broken, slow or many at once."""

from __future__ import annotations

import logging
import os
import select
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from cortex.engine.kernels.native import build as module
from cortex.engine.kernels.native.build import (
    BuildError,
    build,
    cache_directory,
    compiler_of,
    machine_flag,
)
from cortex.engine.kernels.native.load import load

QUICK = """#!/bin/sh
# A compiler that counts its runs and leaves a file behind.
case "$*" in *--version*) echo fake 1.0; exit 0;; esac
echo run >> {runs}
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""
VERSION_ONLY = """#!/bin/sh
case "$*" in *--version*) echo fake 1.0; exit 0;; esac
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A fake compiler and a cache of its own."""
    compiler = script(tmp_path / "fake-cc", QUICK.format(runs=tmp_path / "runs"))
    path = os.environ.get("PATH", "")
    return {"CC": str(compiler), "CORTEX_CACHE_DIR": str(tmp_path / "cache"), "PATH": path}


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").iterdir() if "building" in path.name]


def test_the_cache_is_where_the_environment_says():
    assert cache_directory({"CORTEX_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/cortex")
    assert cache_directory({}) == Path.home() / ".cache" / "cortex"


def test_the_compiler_is_the_named_one_or_the_first_that_is_there(tmp_path: Path):
    gcc = script(tmp_path / "gcc", VERSION_ONLY)
    script(tmp_path / "clang", VERSION_ONLY)
    path = str(tmp_path)
    assert compiler_of({"PATH": path}) == [str(gcc)]
    assert compiler_of({"PATH": path, "CC": "clang -v"}) == [str(tmp_path / "clang"), "-v"]
    with pytest.raises(BuildError, match="no C compiler"):
        compiler_of({"PATH": str(tmp_path / "nothing")})
    with pytest.raises(BuildError, match="icc is not there"):
        compiler_of({"PATH": path, "CC": "icc"})


def test_the_flags_ask_for_this_processor():
    assert machine_flag("x86_64") == "-march=native"
    assert machine_flag("aarch64") == machine_flag("arm64") == "-mcpu=native"


def test_a_library_is_built_once(environ, tmp_path: Path):
    first = build(environ)
    assert build(environ) == first
    assert first.read_text() == "library\n"
    assert runs(tmp_path) == 1
    assert not leftovers(tmp_path)


def test_what_decides_the_bytes_decides_the_name(environ, tmp_path: Path, monkeypatch):
    names = {build(environ).name, build(environ, flags=("-O1",)).name}
    compiler = Path(environ["CC"])
    script(compiler, compiler.read_text().replace("fake 1.0", "fake 1.1"))
    names.add(build(environ).name)
    monkeypatch.setattr(module, "_processor", lambda: "another")
    names.add(build(environ).name)
    sources = tmp_path / "sources"
    shutil.copytree(module.SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    with (sources / "rows.c").open("a") as file:
        file.write("/* changed */\n")
    monkeypatch.setattr(module, "SOURCES", sources)
    names.add(build(environ).name)
    assert len(names) == 5
    assert runs(tmp_path) == 5


def test_many_at_once_all_get_a_whole_library(environ, tmp_path: Path):
    found: list[Path] = []
    start = threading.Barrier(6)

    def one() -> None:
        start.wait(10)
        found.append(build(environ))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert found[0].read_text() == "library\n"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (VERSION_ONLY + "echo bad source; exit 1\n", r"failed \(1\): bad source"),
        ("#!/bin/sh\nexit 3\n", r"failed \(3\)"),
        ("#!/no/such/interpreter\n", "does not run"),
    ],
)
def test_a_broken_compiler_is_an_error_in_words(environ, tmp_path: Path, text, words):
    script(Path(environ["CC"]), text)
    with pytest.raises(BuildError, match=words):
        build(environ)
    assert not (tmp_path / "cache").exists() or not leftovers(tmp_path)


def test_a_compiler_that_hangs_is_ended_with_its_children(environ, tmp_path: Path, monkeypatch):
    held = tmp_path / "held"  # open for writing in the compiler and in its child
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    text = VERSION_ONLY + f"exec 9> {held}\nsleep 300 &\necho started\nwait\n"
    script(Path(environ["CC"]), text)
    communicate = subprocess.Popen.communicate

    def passed(process: subprocess.Popen[str], timeout: float) -> tuple[str, None]:
        if "--version" in process.args:
            return communicate(process, timeout=timeout)
        assert process.stdout.readline() == "started\n"
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", passed)
    try:
        with pytest.raises(BuildError, match="took longer than 120 s"):
            build(environ)
        assert select.select([reader], [], [], 60)[0]  # nobody holds it any more
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
    assert not leftovers(tmp_path)


def test_a_cache_that_others_can_write_to_is_refused(environ, tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(BuildError, match="can be written to by others"):
        build(environ)


def test_a_cache_that_cannot_be_made_is_an_error_in_words(environ, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cache cannot be used"):
        build({**environ, "CORTEX_CACHE_DIR": str(tmp_path / "file" / "cache")})


def warnings_of(caplog: pytest.LogCaptureFixture, environ: dict[str, str]) -> list[str]:
    with caplog.at_level(logging.WARNING, "cortex.engine"):
        assert load(environ) is None
    return [record.getMessage() for record in caplog.records]


def test_without_a_compiler_there_is_one_warning(environ, caplog):
    (warning,) = warnings_of(caplog, {**environ, "CC": "", "PATH": "/nowhere"})
    assert "there is no C compiler" in warning


def test_what_does_not_load_is_one_warning(environ, caplog):
    (warning,) = warnings_of(caplog, environ)  # the fake compiler's library is text
    assert "kernels-" in warning


def test_turned_off_there_is_no_build_and_no_warning(environ, tmp_path: Path, caplog):
    assert warnings_of(caplog, {**environ, "CORTEX_NATIVE": "0"}) == []
    assert not (tmp_path / "cache").exists()


STRANGER = "long cortex_level(void) { return 0; }"


def real(cache: Path, tmp_path: Path, source: Path) -> dict[str, str]:
    """An environment whose compiler compiles *source* instead, without optimising."""
    text = f"""#!/bin/sh
case "$*" in *--version*) echo fake 1.0; exit 0;; esac
while [ "$1" != -o ]; do shift; done
exec {shlex.join(compiler_of(os.environ))} -O0 -shared -fPIC -o "$2" {source} -lm
"""
    compiler = script(tmp_path / "other-cc", text)
    cache_of = str(tmp_path / "cache")
    return {**os.environ, "CC": str(compiler), "CORTEX_CACHE_DIR": cache_of}


def test_another_library_is_one_warning(cache, tmp_path: Path, caplog):
    source = tmp_path / "stranger.c"
    source.write_text(STRANGER)
    (warning,) = warnings_of(caplog, real(cache, tmp_path, source))
    assert "undefined symbol" in warning


@pytest.mark.slow
def test_a_library_that_computes_wrongly_is_one_warning(cache, tmp_path: Path, caplog):
    sources = tmp_path / "sources"
    shutil.copytree(module.SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    rows = sources / "rows.c"
    text = rows.read_text()
    assert "sum / (float)width + eps" in text
    rows.write_text(text.replace("sum / (float)width + eps", "sum / (float)width + 1"))
    (warning,) = warnings_of(caplog, real(cache, tmp_path, sources / "kernels.c"))
    assert "a norm is off by" in warning
