#!/usr/bin/env python3
"""Run cortex from a checkout: `python3 cortex.py up`, `python3 cortex.py test`.

On first use this makes `.venv` beside itself and installs what the command needs: the wheels whose
hashes are in packaging/locks, and torch, of which packaging/constraints.txt has only the version,
since pip's index decides the build. Then it replaces itself with the environment's Python running
the same command, so that a checkout and the zipapp are used alike. It installs again when the locks
or the dependencies in pyproject.toml change.

Nothing but the standard library is used here, and the syntax is that of Python 3.6, because the
first thing an old Python must do with this file is to say that it is too old.

What keeps `.venv` whole: an exclusive lock on the checkout's folder admits one set-up at a time
(pip inherits it, so that it outlives us if we are killed); a marker in `.venv` says "incomplete"
from before the first change until after the last; an incomplete environment is thrown away and
made again. A `.venv` that somebody else made is installed into and never removed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info < (3, 11):
    sys.stderr.write(
        "cortex: needs Python 3.11 or newer, and this is Python {}.{} ({}); "
        "try: python3.11 cortex.py\n".format(*sys.version_info[:2], sys.executable)
    )
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "packaging" / "constraints.txt"
LOCKS = ROOT / "packaging" / "locks"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
MARKER = VENV / "cortex.json"
LOG = VENV / "cortex-set-up.log"

# Commands that need more than a gateway does; every other one is content with the base.
NEURON_COMMANDS = frozenset({"bench", "neuron", "up"})
EXPECTED = {
    "base": "usually under a minute",
    "neuron": "some minutes, since torch is a large download",
    "test": "some minutes, since torch and the test tools are large downloads",
}
# The files of LOCKS that a feature adds. What is in none of them is in UNLOCKED.
LOCK_FILES = {"base": ("base.txt",), "neuron": ("neuron.txt", "torch.txt"), "test": ("test.txt",)}
UNLOCKED = frozenset({"torch", "triton"})
# Settings that would send pip's work elsewhere than into the environment that it belongs to, or
# let it take packages from elsewhere for installed ones.
MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT", "PYTHONPATH", "PYTHONHOME")
LARGE_DOWNLOAD = re.compile(r"Downloading (\S+?)-\d\S* \((\d{2,}(?:\.\d+)? MB|\S+ GB)\)")


class SetUpError(Exception):
    """The environment cannot be made; the message is one line for a person."""


def say(line: str) -> None:
    """Write one line to stderr: stdout belongs to the command that follows."""
    sys.stderr.write(f"cortex: {line}\n")
    sys.stderr.flush()


def features_for(arguments: Sequence[str]) -> tuple[str, ...]:
    """Name the sets of packages which the command in *arguments* needs, smallest first."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command == "test":
        return ("base", "neuron", "test")
    return ("base", "neuron") if command in NEURON_COMMANDS else ("base",)


def requirements(feature: str) -> list[str]:
    """Return what pip is asked for, from pyproject.toml, which alone knows the dependencies."""
    import tomllib  # from Python 3.11 on

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if feature == "base":
        return list(project["dependencies"])
    # torch is pinned but not declared: which build is right depends on the host.
    return [*project["optional-dependencies"][feature], *(["torch"] if feature == "neuron" else [])]


def name_of(requirement: str) -> str:
    """Return the package that *requirement* is about, as indexes spell it."""
    name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def fingerprint(feature: str) -> str:
    """Return a digest of everything that decides what installing *feature* gives."""
    digest = hashlib.sha256(CONSTRAINTS.read_bytes())
    for name in LOCK_FILES[feature]:
        digest.update((LOCKS / name).read_bytes())
    digest.update("\n".join(requirements(feature)).encode())
    return digest.hexdigest()


def read_marker() -> dict[str, Any]:
    """Return what the marker says, or an empty dictionary: unreadable counts as absent."""
    try:
        marker = json.loads(MARKER.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def write_marker(marker: dict[str, Any]) -> None:
    """Replace the marker in one step: a reader sees the old one or the new one."""
    draft = MARKER.with_suffix(".draft")
    draft.write_text(json.dumps(marker, indent=1), encoding="utf-8")
    draft.replace(MARKER)


def is_sound(marker: dict[str, Any]) -> bool:
    """Say whether the environment is whole and still stands on the Python it was made with.

    The second fails when a system upgrade moves `python3` to another version.
    """
    return bool(marker.get("complete")) and marker.get("python") == os.path.realpath(PYTHON)


def is_ready(features: Sequence[str]) -> bool:
    """Say whether a command that needs *features* can run at once."""
    marker = read_marker()
    return (
        is_sound(marker)
        and PYTHON.exists()
        and all(
            marker.get("installed", {}).get(feature) == fingerprint(feature) for feature in features
        )
    )


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Hold the checkout's lock and give its descriptor; wait, and say so, while another has it."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another cortex.py is setting up .venv; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def discard() -> None:
    """Remove `.venv`, moved aside first so that an interruption leaves no half of it in place."""
    aside = ROOT / f".venv.discarded-{os.getpid()}"
    if VENV.exists():
        VENV.rename(aside)
    for folder in ROOT.glob(".venv.discarded-*"):
        shutil.rmtree(folder, ignore_errors=True)


def create(lock: int) -> None:
    """Make an empty environment that carries its marker, incomplete, from the first moment."""
    say(f"making .venv with Python {sys.version.split()[0]}, once for this checkout")
    seed = ROOT / f".venv.discarded-{os.getpid()}"
    seed.mkdir()
    (seed / MARKER.name).write_text(json.dumps({"made_here": True, "complete": False}))
    seed.rename(VENV)
    # The Python below a virtual environment, lest the new one depend on that (or on itself).
    base = getattr(sys, "_base_executable", None) or sys.executable
    status, output = run_logged([base, "-m", "venv", str(VENV)], lock)
    if status != 0:
        hint = ""
        if "ensurepip" in output:
            hint = "; on Debian and Ubuntu: apt install python3-venv"
        raise SetUpError(f"{base} -m venv failed{hint}; see {LOG}")


def start(command: Sequence[str], lock: int) -> "subprocess.Popen[str]":
    """Start *command* so that it holds *lock* as long as it lives, its output in one pipe."""
    return subprocess.Popen(
        command,
        env={key: value for key, value in os.environ.items() if key not in MISLEADING},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(lock,),
    )


def run_logged(command: Sequence[str], lock: int) -> tuple[int, str]:
    """Run *command* under *lock*, append its output to the log, return status and output."""
    lines = []
    with start(command, lock) as process, LOG.open("a", encoding="utf-8") as log:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            large = LARGE_DOWNLOAD.search(line)
            if large:
                say(f"downloading {large[1]} ({large[2]})")
    return process.returncode, "".join(lines)


def install(features: Sequence[str], lock: int) -> None:
    """Install *features*; raise `SetUpError` with pip's first complaint."""
    wanted = [requirement for feature in features for requirement in requirements(feature)]
    locks = [LOCKS / name for feature in features for name in LOCK_FILES[feature]]
    locked_lines = "".join(path.read_text(encoding="utf-8") for path in locks)
    known = {name_of(name) for name in re.findall(r"^(\S+)==", locked_lines, re.MULTILINE)}
    missing = sorted({name_of(requirement) for requirement in wanted} - known - UNLOCKED)
    if missing:
        raise SetUpError(f"packaging/locks lacks {', '.join(missing)}: run packaging/lock")
    pip(["--require-hashes", *(f"--requirement={path}" for path in locks)], lock)
    unlocked = [requirement for requirement in wanted if name_of(requirement) in UNLOCKED]
    if unlocked:
        pip(["--constraint", str(CONSTRAINTS), *unlocked], lock)


def pip(arguments: Sequence[str], lock: int) -> None:
    """Install wheels; raise `SetUpError` with the cause in one line."""
    command = [str(PYTHON), "-m", "pip", "install", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    # Compiling all of torch takes longer than the few files that a start imports.
    status, output = run_logged([*command, "--no-compile", "--retries", "2", *arguments], lock)
    if status == 0:
        return
    errors = [line[len("ERROR:") :].strip() for line in output.splitlines() if "ERROR:" in line]
    reason = errors[0] if errors else f"pip ended with status {status}"
    mismatch = re.search(r"^ +(\S+==\S+) .*\n\s*Expected sha256", output, re.MULTILINE)
    if mismatch:
        reason = (
            f"{mismatch[1]} as pip's index gives it is not the one that packaging/locks has the "
            "hash of; an index that builds its own wheels needs locks of its own (packaging/lock)"
        )
    elif "connection broken" in output or "No matching distribution" in output:
        # Named first, since pip then complains of conflicts between versions that it never saw.
        reason = (
            f"pip's package index is out of reach or lacks a package, check the network ({reason})"
        )
    raise SetUpError(f"cannot install: {reason}; see {LOG}")


def link_checkout() -> None:
    """Put the checkout on the environment's path, relative, so that both can be moved together."""
    for packages in VENV.glob("lib/python3*/site-packages"):
        link = os.path.relpath(ROOT, packages)
        (packages / "cortex-checkout.pth").write_text(f"{link}\n", encoding="utf-8")


def set_up(features: Sequence[str], lock: int) -> None:
    """Bring `.venv` to where *features* are installed, from whatever state it is in."""
    started = time.monotonic()
    marker = read_marker()
    if marker.get("made_here") and not is_sound(marker):
        say("the last set-up was not finished, or its Python has changed: starting afresh")
        discard()
        marker = {}
    if not VENV.exists():
        create(lock)
        marker = {"made_here": True}
    elif not PYTHON.exists():
        raise SetUpError(f"{VENV} was not made by cortex.py and has no Python: please remove it")
    marker["complete"] = False
    write_marker(marker)
    say(f"installing what is needed ({', '.join(features)}): {EXPECTED[features[-1]]}")
    install(features, lock)
    link_checkout()
    installed = {**marker.get("installed", {}), **{name: fingerprint(name) for name in features}}
    write_marker(
        {
            "made_here": bool(marker.get("made_here")),
            "complete": True,
            "python": os.path.realpath(PYTHON),
            "installed": installed,
        }
    )
    say(f"ready after {time.monotonic() - started:.0f} s")


def run(arguments: Sequence[str]) -> NoReturn:
    """Become the environment's Python with the command; never returns."""
    if "test" in features_for(arguments):
        os.chdir(ROOT)
        words = list(arguments)
        words.remove("test")
        module = ["-m", "pytest", *words]
    else:
        module = ["-m", "cortex", *arguments]
        # How a person would start the next command: what we print is for pasting.
        os.environ["CORTEX_COMMAND"] = "python3 " + sys.argv[0]
    # -P: the folder in which the user stands is no place to import from.
    os.execv(PYTHON, [str(PYTHON), "-P", *module])


def main(arguments: Sequence[str]) -> int:
    """Set up what is missing, then run the command; return a status only where that fails."""
    features = features_for(arguments)
    try:
        if not is_ready(features):
            with locked() as lock:
                if not is_ready(features):
                    set_up(features, lock)
    except SetUpError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"cannot set up {VENV}: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the next start sets up again")
        return 130
    run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
