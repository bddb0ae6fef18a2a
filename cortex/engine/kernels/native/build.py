"""From the C files beside this one to a shared library for this machine, kept in a cache.

The library's name is made of all that decides its bytes: sources, flags, compiler and processor.
It is written under a name of its own and renamed, so that any number of processes may build at
once. No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 120  # three on a quick core; a busy small one needs many times that
VERSION_SECONDS = 20
# Contraction is written out where it is wanted: what the packed formats' formulas round stays so.
# Sums of integers made of what is not finite may wrap.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fwrapv")


class BuildError(Exception):
    """There is no library; the message says why in words."""


def cache_directory(environ: Mapping[str, str]) -> Path:
    """``CORTEX_CACHE_DIR``, else cortex's place among the user's caches."""
    if environ.get("CORTEX_CACHE_DIR"):
        return Path(environ["CORTEX_CACHE_DIR"])
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "cortex"
    return Path("~/.cache/cortex").expanduser()


def compiler_of(environ: Mapping[str, str]) -> list[str]:
    """The command of the C compiler: ``CC``, else the first of `COMPILERS` on the path."""
    named = shlex.split(environ.get("CC", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        found = shutil.which(command[0], path=environ.get("PATH"))
        if found:
            return [found, *command[1:]]
    raise BuildError(f"{named[0]} is not there" if named else "there is no C compiler")


def machine_flag(machine: str) -> str:
    """What makes the compiler use this very processor."""
    return "-march=native" if machine in ("x86_64", "AMD64") else "-mcpu=native"


def build(environ: Mapping[str, str] = os.environ, flags: tuple[str, ...] = ()) -> Path:
    """The library, compiled unless it is in the cache. *flags* come last. Raises `BuildError`."""
    compiler = compiler_of(environ)
    wanted = (*FLAGS, machine_flag(platform.machine()), *flags)
    name = f"kernels-{_key(compiler, wanted)}.so"
    try:
        directory = _prepared(cache_directory(environ))
        library = directory / name
        if not library.exists():
            _compile([*compiler, *wanted], library)
    except OSError as error:
        raise BuildError(f"the cache cannot be used: {error}") from error
    return library


def _prepared(directory: Path) -> Path:
    """*directory*, made where it is not there; ours alone, since code is loaded from it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{directory} can be written to by others")
    return directory


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    parts = [
        *(path.read_bytes() for path in sorted(SOURCES.glob("*.c"))),
        "\0".join((*compiler, *flags)).encode(),
        _output([*compiler, "--version"], VERSION_SECONDS).encode(),
        _processor().encode(),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What tells processors apart that need different code."""
    kept = {"flags", "Features", "model name", "CPU implementer", "CPU part"}
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            key, _, value = line.partition(":")
            if key.strip() in kept and value not in lines:
                lines.append(value)
    return "\n".join((platform.machine(), platform.system(), *lines))


def _compile(command: list[str], library: Path) -> None:
    handle, name = tempfile.mkstemp(suffix=".so", prefix="building-", dir=library.parent)
    os.close(handle)
    try:
        _output([*command, "-o", name, str(SOURCES / "kernels.c"), "-lm"], COMPILE_SECONDS)
        os.replace(name, library)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _output(command: list[str], seconds: float) -> str:
    """What *command* prints. `BuildError` where it fails or takes longer; its children end too."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildError(f"{command[0]} took longer than {seconds:g} s") from None
            raise
    if process.returncode:
        last = output.strip().splitlines()[-3:]
        raise BuildError(f"{command[0]} failed ({process.returncode}): {' | '.join(last)}")
    return output
