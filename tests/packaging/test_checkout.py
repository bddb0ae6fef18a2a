"""cortex.py: makes the environment that a command needs, keeps it whole, and gets out of the way.

In a small checkout of its own, whose dependencies are wheels made here: no network is used.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYPROJECT = """\
[project]
name = "cortex"
dependencies = ["alpha"]
[project.optional-dependencies]
neuron = ["beta"]
test = []
"""
MAIN = """\
import importlib.metadata, json, sys
found = {d.name: d.version for d in importlib.metadata.distributions()}
print(json.dumps({"arguments": sys.argv[1:], "found": found, "prefix": sys.prefix}))
"""


def write_wheel(folder: Path, name: str, version: str, module: str = "") -> None:
    """Write a wheel that holds the one module *name*."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", module)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")


class Checkout:
    """A checkout with the real cortex.py and a package that tells how it was started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wheels = folder / "checkout", folder / "wheels"
        self.wheels.mkdir(parents=True)
        (self.folder / "cortex").mkdir(parents=True)
        self.locks = self.folder / "packaging" / "locks"
        self.locks.mkdir(parents=True)
        shutil.copy(ROOT / "cortex.py", self.folder)
        (self.folder / "cortex" / "__init__.py").write_text("")
        (self.folder / "cortex" / "__main__.py").write_text(MAIN)
        (self.folder / "pyproject.toml").write_text(PYPROJECT)
        for name in ("alpha", "beta", "torch", "pytest"):
            write_wheel(self.wheels, name, "1.0", "import sys; print(sys.argv[1:])")
        (self.folder / "packaging" / "constraints.txt").write_text("torch==1.0\n")
        self.lock(base=["alpha"], neuron=["beta"], torch=[], test=["pytest"])

    @property
    def marker(self) -> Path:
        return self.folder / ".venv" / "cortex.json"

    def lock(self, version: str = "1.0", **names: list[str]) -> None:
        """Write locks of packages called *names*, with the hashes of their wheels of *version*."""
        for lock, packages in names.items():
            lines = [self.locked(name, version) for name in packages]
            (self.locks / f"{lock}.txt").write_text("".join(lines))

    def locked(self, name: str, version: str) -> str:
        wheel = self.wheels / f"{name}-{version}-py3-none-any.whl"
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return f"{name}=={version} --hash=sha256:{digest}\n"

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return subprocess.Popen(
            [sys.executable, str(self.folder / "cortex.py"), *arguments],
            env={**environment, "PIP_CONFIG_FILE": os.devnull, **settings},
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        """Return the exit status, stdout and stderr of `cortex.py` with *arguments*."""
        with self.start(*arguments, **settings) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def told(self, *arguments: str) -> dict[str, object]:
        """Run a command, which must succeed, and return what the package told about its start."""
        status, out, err = self.run(*arguments)
        assert status == 0, err
        answer = json.loads(out)
        assert isinstance(answer, dict)
        return answer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkout whose base is installed: making an environment takes seconds."""
    checkout = Checkout(tmp_path_factory.mktemp("base"))
    status, _out, err = checkout.run("version", "--json")
    assert status == 0, err
    return checkout.folder.parent


@pytest.fixture
def checkout(base: Path, tmp_path: Path) -> Checkout:
    """A copy of the checkout whose base is installed; moved, so, which it must survive."""
    copy = Checkout.__new__(Checkout)
    copy.folder, copy.wheels = tmp_path / "checkout", tmp_path / "wheels"
    copy.locks = copy.folder / "packaging" / "locks"
    for name in ("checkout", "wheels"):
        shutil.copytree(base / name, tmp_path / name, symlinks=True)
    return copy


def test_an_old_python_can_read_it_as_far_as_the_line_that_refuses_it() -> None:
    source = (ROOT / "cortex.py").read_text(encoding="utf-8")
    body = ast.parse(source, feature_version=(3, 6)).body
    (check,) = [n for n in body if isinstance(n, ast.If) and "version_info" in ast.dump(n.test)]
    before = body[: body.index(check)]
    # Nothing that an old Python would trip over comes first: only what it can import, too.
    assert all(isinstance(node, ast.Expr | ast.Import | ast.ImportFrom) for node in before)
    assert "tomllib" not in "".join(ast.dump(node) for node in before)


@pytest.mark.slow
def test_the_first_start_says_what_it_does_and_runs_the_command(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    status, out, err = checkout.run("version", "--json")
    assert status == 0, err
    assert "making .venv" in err
    assert "ready after" in err
    told = json.loads(out)  # nothing but the command's own output on stdout
    assert told["arguments"] == ["version", "--json"]
    assert told["prefix"] == str(checkout.folder / ".venv")
    assert told["found"]["alpha"] == "1.0"
    assert not {"beta", "torch"} & set(told["found"])


@pytest.mark.slow
def test_a_second_start_says_nothing_and_installs_nothing(checkout: Checkout) -> None:
    before = checkout.marker.stat().st_mtime_ns
    status, _out, err = checkout.run("status")
    assert (status, err) == (0, "")
    assert checkout.marker.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_neuron_gets_torch_and_what_a_neuron_needs(checkout: Checkout) -> None:
    found = checkout.told("--verbose", "neuron")["found"]
    assert isinstance(found, dict)
    assert {"alpha", "beta", "torch"} <= set(found)
    status, _out, err = checkout.run("gateway")
    assert (status, err) == (0, "")


@pytest.mark.slow
def test_test_runs_pytest_in_the_checkout(checkout: Checkout) -> None:
    pyproject = checkout.folder / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace("test = []", 'test = ["pytest"]'))
    status, out, err = checkout.run("test", "-q", "tests/some")
    assert status == 0, err
    assert out.strip() == "['-q', 'tests/some']"


@pytest.mark.slow
def test_changed_locks_are_installed(checkout: Checkout) -> None:
    write_wheel(checkout.wheels, "alpha", "1.1")
    checkout.lock("1.1", base=["alpha"])
    found = checkout.told("version")["found"]
    assert isinstance(found, dict)
    assert found["alpha"] == "1.1"


@pytest.mark.slow
def test_other_changes_to_pyproject_install_nothing(checkout: Checkout) -> None:
    pyproject = checkout.folder / "pyproject.toml"
    pyproject.write_text(PYPROJECT + "[tool.ruff]\nline-length = 90\n")
    status, _out, err = checkout.run("version")
    assert (status, err) == (0, "")


@pytest.mark.slow
def test_an_unfinished_environment_is_made_again(checkout: Checkout) -> None:
    checkout.marker.write_text(json.dumps({"made_here": True, "complete": False}))
    leftover = checkout.folder / ".venv" / "leftover"
    leftover.write_text("")
    status, out, err = checkout.run("version")
    assert status == 0, err
    assert "starting afresh" in err
    assert json.loads(out)["found"]["alpha"] == "1.0"
    assert not leftover.exists()
    assert [path.name for path in checkout.folder.glob(".venv*")] == [".venv"]


@pytest.mark.slow
def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    python = checkout.folder / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")
    assert checkout.told("version")["prefix"] == str(checkout.folder / ".venv")


@pytest.mark.slow
def test_an_environment_made_by_somebody_else_is_used_and_kept(checkout: Checkout) -> None:
    checkout.marker.unlink()
    own = checkout.folder / ".venv" / "own-file"
    own.write_text("")
    assert checkout.told("version")["arguments"] == ["version"]
    assert own.exists()


@pytest.mark.slow
def test_a_failed_installation_is_one_line_and_the_next_start_tries_again(
    checkout: Checkout,
) -> None:
    pyproject = checkout.folder / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace('"alpha"', '"alpha", "gamma"'))
    write_wheel(checkout.wheels, "gamma", "1.0")
    checkout.lock(base=["alpha", "gamma"])
    hidden = checkout.wheels.parent / "gamma-1.0-py3-none-any.whl"
    (checkout.wheels / hidden.name).rename(hidden)
    status, out, err = checkout.run("version")
    assert (status, out) == (2, "")
    assert "cannot install" in err.splitlines()[-1]
    assert "gamma" in err.splitlines()[-1]
    assert "package index" in err.splitlines()[-1]
    assert "Traceback" not in err
    hidden.rename(checkout.wheels / hidden.name)
    found = checkout.told("version")["found"]
    assert isinstance(found, dict)
    assert found["gamma"] == "1.0"


@pytest.mark.slow
def test_a_dependency_that_is_not_locked_is_not_installed(checkout: Checkout) -> None:
    pyproject = checkout.folder / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace('"alpha"', '"alpha", "Gamma>=1; os_name == \'posix\'"'))
    write_wheel(checkout.wheels, "gamma", "1.0")
    status, out, err = checkout.run("version")
    assert (status, out) == (2, "")
    assert "packaging/locks lacks gamma" in err.splitlines()[-1]


class Index(ThreadingHTTPServer):
    """A package index on loopback: pages of *wheels*, each with the hash that its link claims."""

    def __init__(self, wheels: Path, *, with_hashes: bool) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                words = self.path.strip("/").split("/")
                if words[0] == "files":
                    body, kind = (wheels / words[1]).read_bytes(), "application/zip"
                else:
                    links = [self.link(path) for path in wheels.glob(f"{words[1]}-*.whl")]
                    body, kind = "".join(links).encode(), "text/html"
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def link(self, path: Path) -> str:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                fragment = f"#sha256={digest}" if with_hashes else ""
                return f'<a href="/files/{path.name}{fragment}">{path.name}</a>'

            def log_message(self, *_: object) -> None:
                """Nobody wants to read it."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def settings(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}/simple"
        return {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": url}


@pytest.mark.slow
@pytest.mark.parametrize("with_hashes", [False, True])
def test_an_altered_wheel_is_refused_and_the_right_one_taken(
    checkout: Checkout, tmp_path: Path, with_hashes: bool
) -> None:
    write_wheel(checkout.wheels, "alpha", "1.1", "right = True")
    checkout.lock("1.1", base=["alpha"])
    altered = tmp_path / "altered"
    altered.mkdir()
    write_wheel(altered, "alpha", "1.1", "import this_is_not_what_was_locked")
    for wheels, wanted in ((altered, 2), (checkout.wheels, 0)):
        with Index(wheels, with_hashes=with_hashes) as index:
            thread = threading.Thread(target=index.serve_forever)
            thread.start()
            try:
                status, out, err = checkout.run("version", **index.settings)
            finally:
                index.shutdown()
                thread.join()
        assert status == wanted, err
        if wanted:
            assert "alpha==1.1" in err.splitlines()[-1]
            assert "packaging/locks" in err.splitlines()[-1]
        else:
            assert json.loads(out)["found"]["alpha"] == "1.1"


@pytest.mark.slow
def test_two_starts_at_once_make_one_environment(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    with checkout.start("version") as first, checkout.start("version") as second:
        outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert sum("making .venv" in err for _out, err in outputs) == 1
    assert sum("ready after" in err for _out, err in outputs) == 1


@pytest.mark.slow
def test_a_start_that_is_killed_leaves_nothing_that_the_next_would_trust(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    with checkout.start("version") as process:
        assert process.stderr is not None
        assert "making .venv" in process.stderr.readline()
        process.send_signal(signal.SIGKILL)
    assert checkout.told("version")["arguments"] == ["version"]


@pytest.mark.slow
def test_a_start_waits_while_the_checkout_is_locked(checkout: Checkout) -> None:
    (checkout.folder / "packaging" / "constraints.txt").write_text("# changed\n")
    descriptor = os.open(checkout.folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with checkout.start("version") as process:
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        os.close(descriptor)
        out, _err = process.communicate(timeout=120)
    assert json.loads(out)["arguments"] == ["version"]
